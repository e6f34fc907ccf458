"""What a draft gives: answers with it and without it, in turns, on one model in memory.

The draft of a real model makes its own guesses. With an ``acceptance`` they are simulated, also
for shapes with random weights: each guess is the model's own next token with that probability and
another one otherwise, by chance that is the same each time. Everything else is done as ever: the
draft runs its passes for the guesses, the model reads them, and what pays is decided by the clock.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import arguments
from ..display import NAME_CHARS, one_line
from ..errors import EdgeDBError
from ..model.dbb import DbbFile, read_dbb
from ..ops import Ops, create
from ..ops.selection import Floats, Ids
from ..run.draft import DEFAULT_DRAFT, Draft
from ..run.engine import Model, load
from ..run.loaded import LoadedModel
from ..run.reader import Reader
from ..run.stakes import Experience
from .shapes import Weights, random_weights, word_tokenizer, write_random

_PROMPT = 16  # tokens before a simulated answer
_QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Explain in a few sentences how a bicycle stays upright.",
    "List five facts about the river Seine.",
    "Write a Python function that reverses a list, and explain it.",
)
_ACCEPTANCES = arguments.each(arguments.number(0, 1), "a list of numbers from 0 to 1")


@dataclass(frozen=True)
class DraftRow:
    """Tokens a second of answers with a draft and without, medians over the repetitions."""

    model: str
    draft: str
    test: str  # acceptance that is simulated, or temperature of real answers
    threads: int
    isa: str
    kv_dtype: str
    without: float  # tokens a second
    with_draft: float
    ratio: float  # median of the ratios of neighbouring runs
    drafted: int  # guesses that were read, of all repetitions
    accepted: int  # of these, the ones that were right
    tokens: int  # that were written with the draft
    ratios: list[float] = field(default_factory=list)


COLUMNS: dict[str, Callable[[DraftRow], str]] = {
    "model": lambda r: r.model.replace("|", "\\|"),
    "draft": lambda r: r.draft.replace("|", "\\|"),
    "test": lambda r: r.test,
    "isa": lambda r: r.isa,
    "threads": lambda r: str(r.threads),
    "without, tokens/s": lambda r: f"{r.without:.1f}",
    "with": lambda r: f"{r.with_draft:.1f}",
    "ratio": lambda r: f"{r.ratio:.2f} ({min(r.ratios):.2f} to {max(r.ratios):.2f})",
    "guesses right": lambda r: f"{r.accepted / r.drafted:.0%}" if r.drafted else "",
    "guesses a token": lambda r: f"{r.drafted / r.tokens:.2f}",
}


class SimulatedDraft(Draft):
    """A draft whose guesses are right with a given probability, whatever it thinks itself."""

    def __init__(self, model: LoadedModel, text: Ids, acceptance: float) -> None:
        """``text``: what the model will write, with its prompt."""
        super().__init__(model, model.vocab_size)
        self._text, self._acceptance = text, acceptance
        self._chance = np.random.Generator(np.random.PCG64(1))

    def choose(self, logits: Floats) -> int:
        """As a draft does, but for which token it is."""
        super().choose(logits)
        right = int(self._text[min(self.position, len(self._text) - 1)])
        if self._chance.random() < self._acceptance:
            return right
        return (right + 1) % min(self.model.vocab_size, int(self._text.max()) + 2)


def run(
    model: str | os.PathLike[str] | None,
    draft: str,
    *,
    shape: str | None = None,
    pairs: float = 1,
    file: str | os.PathLike[str] | None = None,
    acceptance: Sequence[float] = (),
    decode: int = 128,
    depth: int = 0,
    kv_dtype: str = "float16",
    repetitions: int = 5,
    threads: Sequence[int] = (),
    backend: str | None = None,
    isa: str | None = None,
    memory: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> list[DraftRow]:
    """Measure answers of ``decode`` tokens at every thread count.

    ``draft`` is a model where ``model`` is given, and a shape of one pair where ``shape`` is;
    shapes need an ``acceptance``, as every simulation, whose answers begin behind ``depth``
    positions. The rest is as for ``benchmark.run``.
    """
    repetitions = arguments.whole(1)("repetitions", repetitions)
    acceptance = _ACCEPTANCES("acceptance", acceptance)
    if (model is None) == (shape is None):
        raise EdgeDBError("give either a model file or --shape")
    if model is None and not acceptance:
        raise EdgeDBError("random weights write nothing that can be guessed: give --acceptance")
    rows = []
    opened = {}
    if shape is not None:
        opened = {shape: _random(shape, pairs, file, memory), draft: _random(draft)}
    for count in threads or (None,):
        ops = create(backend, isa, count)
        if shape is not None:
            context = max(depth, _PROMPT) + decode
            target, guide = (
                _in_memory(name, opened[name], ops, context, kv_dtype) for name in (shape, draft)
            )
            measured = _simulated(target, guide, acceptance, decode, depth, repetitions)
        else:
            assert model is not None
            target = load(
                model,
                draft=draft,
                backend=backend,
                isa=isa,
                threads=count,
                kv_dtype=kv_dtype,
                memory=memory,
            )
            assert target.draft is not None
            guide = target.draft
            measured = (
                _simulated(target, guide, acceptance, decode, depth, repetitions)
                if acceptance
                else _real(target, decode, repetitions)
            )
        for row in measured:
            if progress is not None:
                progress(f"{row.test} at {row.threads} threads: {row.ratio:.2f} times as fast")
            rows.append(row)
    return rows


def _random(
    shape: str,
    pairs: float = 1,
    file: str | os.PathLike[str] | None = None,
    memory: str = "auto",
) -> Weights | DbbFile:
    if file is None:
        return random_weights(shape, pairs)
    return read_dbb(write_random(file, shape, pairs), memory=memory)


def _in_memory(
    name: str, weights: Weights | DbbFile, ops: Ops, context: int, kv_dtype: str
) -> LoadedModel:
    """A model of random weights, with a tokenizer of as many words."""
    config = weights.config
    file = DbbFile(
        path=Path(f"{name}.dbb"),
        config=config,
        quantization={},
        tokenizer=word_tokenizer(config.vocab_size),
        linears=dict(weights.linears),
        vectors=dict(weights.vectors),
        size_bytes=sum(one.nbytes for one in weights.linears.values()),
        fingerprint="random",
    )
    return LoadedModel(file, ops, context, kv_dtype)


def _simulated(
    model: LoadedModel,
    draft: LoadedModel,
    acceptances: Sequence[float],
    n_tokens: int,
    depth: int,
    repetitions: int,
) -> Iterator[DraftRow]:
    if draft.vocab_size < model.vocab_size:
        raise EdgeDBError(
            f"a draft of {draft.vocab_size:,} tokens cannot read what a model of "
            f"{model.vocab_size:,} writes"
        )
    chance = np.random.Generator(np.random.PCG64(2))
    prompt = [int(i) for i in chance.integers(3, model.vocab_size, max(depth, _PROMPT))]
    text = _write(Reader(model), prompt, n_tokens, 0)[0]
    for acceptance in acceptances:
        draft.experience = Experience()
        simulated = SimulatedDraft(draft, text, acceptance)
        runs: list[tuple[_Run, _Run]] = []
        for _ in range(repetitions + 1):  # the first one warms caches and is not counted
            pair = []
            for most in (0, DEFAULT_DRAFT):
                reader = Reader(model)
                simulated.rewind(0)
                reader.use_draft(simulated)
                found, run = _write(reader, prompt, n_tokens, most)
                _same(found, text)
                pair.append(run)
            runs.append((pair[0], pair[1]))
        yield _row(model, draft, f"simulated {acceptance:g}", runs[1:])


@dataclass
class _Run:
    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def _write(reader: Reader, prompt: Sequence[int], n: int, most: int) -> tuple[Ids, _Run]:
    """``n`` likeliest tokens behind ``prompt``, with up to ``most`` guesses at once: the sequence,
    and how long the tokens took, from the logits of the prompt on."""
    ops = reader.model.ops
    reader.hold(prompt)
    with reader.guessing(len(prompt) + n, 0, most, None) as guesser:
        reader.read()
        started = time.perf_counter()
        for _ in range(n):
            reader.append([int(ops.largest(reader.logits(), 1)[0][0])])
        run = _Run(n, time.perf_counter() - started)
        if guesser is not None:
            run.drafted, run.accepted = guesser.drafted, guesser.accepted
        return reader.ids.copy(), run


def _real(model: Model, n_tokens: int, repetitions: int) -> Iterator[DraftRow]:
    """Questions, greedily and sampled; as texts to continue where there is no chat template."""
    assert model.draft is not None
    is_chat = bool(model.tokenizer_spec.chat_template)
    prompts = [
        model.chat_tokens([{"role": "user", "content": one}]) if is_chat else model.tokenize(one)
        for one in _QUESTIONS
    ]
    for temperature in (0.0, 0.7):
        runs: list[tuple[_Run, _Run]] = []
        for repetition in range(-1, repetitions):
            pair = _Run(), _Run()
            for prompt in prompts:
                texts = []
                for one, most in zip(pair, (0, DEFAULT_DRAFT), strict=True):
                    answer = model.generate(
                        prompt,
                        max_tokens=n_tokens,
                        temperature=temperature,
                        seed=1,
                        draft_tokens=most,
                    )
                    one.tokens += answer.stats.completion_tokens
                    one.seconds += answer.stats.decode_seconds
                    one.drafted += answer.stats.drafted_tokens
                    one.accepted += answer.stats.accepted_tokens
                    texts.append(np.array(answer.tokens, np.int32))
                _same(*texts)
            if repetition >= 0:
                runs.append(pair)
        yield _row(model, model.draft, f"temperature {temperature:g}", runs)


def _same(found: Ids, expected: Ids) -> None:
    if not np.array_equal(found, expected):
        raise EdgeDBError("the text with a draft is another one: please report this")


def _row(
    model: LoadedModel, draft: LoadedModel, test: str, runs: Sequence[tuple[_Run, _Run]]
) -> DraftRow:
    ratios = [drafted.speed / plain.speed for plain, drafted in runs]
    guided = [drafted for _, drafted in runs]
    return DraftRow(
        model=one_line(model.file.path.stem, NAME_CHARS),
        draft=one_line(draft.file.path.stem, NAME_CHARS),
        test=test,
        threads=model.ops.threads,
        isa=model.ops.isa,
        kv_dtype=model.kv_dtype,
        without=statistics.median(plain.speed for plain, _ in runs),
        with_draft=statistics.median(one.speed for one in guided),
        ratio=statistics.median(ratios),
        drafted=sum(one.drafted for one in guided),
        accepted=sum(one.accepted for one in guided),
        tokens=sum(one.tokens for one in guided),
        ratios=ratios,
    )
