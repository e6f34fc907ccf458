"""Data-free training text: sequences that the teacher itself samples (as in LLM-QAT and DB-LLM).

Sampled by a student instead, the text is on-policy: the teacher then corrects what the student does
when it goes on from its own words (as in GKD).

Half of the sequences are chat-shaped (the template's system turn, then the model writes question
and answer, and after an answer the next question), half are documents that start from a random
token. Each sequence has its own temperature. Shard k depends on the seed and k alone, so sampling
resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedb.errors import EdgeDBError
from edgedb.text.tokenizer import load_tokenizer

from .cached import CachedPass
from .command import Arguments, one_line_errors
from .decoder import Decoder, load_teacher
from .scripts import STEMS, Scripts, chat_scripts, read_stems
from .text import id_dtype

SAMPLED = -1  # a place of a script that the model fills


@dataclass(frozen=True)
class SamplingPlan:
    """How text is sampled; a shard is ``sequences`` rows of ``length`` tokens.

    question_temperature: for the user's turns of a chat, where questions are to vary more than
    their answers; None is the sequence's own. stems: SHA-256 of the first words of questions,
    where they are not ``STEMS``.
    """

    sequences: int = 2048
    length: int = 1024
    chat_share: float = 0.5
    temperatures: tuple[float, ...] = (0.7, 0.85, 1.0)
    seed: int = 0
    question_temperature: float | None = None
    stems: str | None = None


def write_scripts(
    plan: SamplingPlan, scripts: Scripts, vocab_size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is given and what is sampled: a table ``[sequences, places]``; and where a sequence goes
    after the end of a turn: int64 ``[sequences, 2]``, after a question and after an answer, -1
    for nowhere.
    """
    n_chat = int(plan.sequences * plan.chat_share) if scripts.chat_starts else 0
    longest = max((len(start) for start in scripts.chat_starts), default=1)
    turns = len(scripts.next_turn) + len(scripts.answer_turn)
    table = np.full((plan.sequences, max(longest, 1) + turns + 3), SAMPLED, np.int64)
    jumps = np.full((plan.sequences, 2), -1, np.int64)
    table[:, 0] = rng.integers(0, vocab_size, plan.sequences)
    for row in range(n_chat):
        start = scripts.chat_starts[rng.integers(len(scripts.chat_starts))]
        table[row, 0] = SAMPLED
        table[row, : len(start)] = start
        place = longest + 1
        for which, turn in enumerate((scripts.answer_turn, scripts.next_turn)):
            jumps[row, which] = place
            table[row, place : place + len(turn)] = turn
            place += len(turn) + 1
    return table, jumps


class Sampler:
    """Samples many sequences at once; one captured CUDA graph for each reach of the cache.

    The weights are the model's, in ``dtype``.
    """

    def __init__(self, model: Decoder, plan: SamplingPlan, dtype: torch.dtype) -> None:
        self.plan, self.config, self.device = plan, model.config, model.device
        n = plan.sequences
        self._pass = CachedPass(model, n, plan.length, dtype)
        self._tokens = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._place = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._asking = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._output = torch.zeros(plan.length, n, dtype=torch.int64, device=self.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._script: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def sample(self, scripts: Scripts, shard: int) -> NDArray[np.int64]:
        """Sequences of shard number ``shard``, int64 ``[sequences, length]``."""
        plan = self.plan
        rng = np.random.default_rng((plan.seed, shard))
        table, jumps = write_scripts(plan, scripts, self.config.vocab_size, rng)
        # Of answers and documents, and of questions.
        temperatures = rng.choice(plan.temperatures, (plan.sequences, 1)).repeat(2, axis=1)
        if plan.question_temperature is not None:
            temperatures[:, 1] = plan.question_temperature
        fresh = (
            torch.from_numpy(table).to(self.device),
            torch.from_numpy(jumps).to(self.device),
            torch.from_numpy(temperatures).float().to(self.device),
        )
        if self._script is None:
            self._script = fresh
            self._end = -2 if scripts.end_id is None else scripts.end_id
        for mine, new in zip(self._script, fresh, strict=True):
            mine.copy_(new)  # captured graphs read these buffers
        torch.manual_seed(plan.seed * 100_003 + shard)
        self._position.zero_()
        self._place.fill_(1)
        self._asking.zero_()
        self._tokens.copy_(self._script[0][:, 0])
        self._output[0] = self._tokens
        for position in range(plan.length - 1):
            self._step(self._pass.reach(position))
        return self._output.t().cpu().numpy()

    def _step(self, reach: int) -> None:
        if self.device.type != "cuda":
            self._advance(reach)
            return
        if reach not in self._graphs:
            state = [t.clone() for t in (self._tokens, self._position, self._place, self._asking)]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._advance(reach)  # lets libraries allocate what a capture may not
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._advance(reach)
            self._graphs[reach] = graph
            for buffer, old in zip(
                (self._tokens, self._position, self._place, self._asking), state, strict=True
            ):
                buffer.copy_(old)
        self._graphs[reach].replay()

    def _advance(self, reach: int) -> None:
        """One token for every sequence, attending to cache places below ``reach``."""
        assert self._script is not None
        table, jumps, temperatures = self._script
        in_question = (jumps[:, :1] >= 0) & (self._asking[:, None] == 0)
        temperature = torch.where(in_question, temperatures[:, 1:], temperatures[:, :1])
        logits = self._pass.logits(self._tokens, self._position, reach) / temperature
        # argmax(logits + Gumbel noise) samples from the softmax.
        sampled = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)
        given = table.gather(1, self._place[:, None])[:, 0]
        token = torch.where(given == SAMPLED, sampled, given)
        ended = (given == SAMPLED) & (token == self._end) & (jumps[:, 0] >= 0)
        jump = jumps.gather(1, self._asking[:, None])[:, 0]
        # A place that is sampled is stayed at; a given one is left for the next.
        self._place.copy_(torch.where(ended, jump, self._place + (given != SAMPLED)))
        self._asking.copy_(torch.where(ended, 1 - self._asking, self._asking))
        self._tokens.copy_(token)
        self._position += 1
        self._output.index_copy_(0, self._position, token[None])


def generate(
    model: Decoder,
    scripts: Scripts,
    plan: SamplingPlan,
    out: Path,
    *,
    shards: int,
    max_seconds: float = float("inf"),
    dtype: torch.dtype | None = None,
) -> int:
    """Write ``out/sampled-KKKK.npy`` up to ``shards`` of them; returns how many there are.

    Shards that exist are kept, so that an interrupted run goes on. No shard is begun that would
    probably end after ``max_seconds``. Raises ``EdgeDBError`` if ``out`` has another plan's text.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = {**asdict(plan), "temperatures": list(plan.temperatures)}
    if plan.stems is None:
        del record["stems"]
    plan_file = out / "sampled.json"
    if plan_file.exists() and json.loads(plan_file.read_text()) != record:
        raise EdgeDBError(f"{out}: holds text sampled with other settings; choose another folder")
    plan_file.write_text(json.dumps(record))
    on_gpu = model.device.type == "cuda"
    sampler = Sampler(model, plan, dtype or (torch.bfloat16 if on_gpu else torch.float32))
    kind = id_dtype(model.config.vocab_size)
    begun, longest = time.monotonic(), 0.0
    for shard in range(shards):
        path = out / f"sampled-{shard:04d}.npy"
        if path.exists():
            continue
        before = time.monotonic()
        if before - begun + longest > max_seconds:
            return shard
        ids = sampler.sample(scripts, shard)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, ids.astype(kind))
        os.replace(partial, path)
        longest = max(longest, time.monotonic() - before)
        rate = ids.size / (time.monotonic() - before)
        print(f"shard {shard + 1}/{shards}: {ids.size:,} tokens, {rate:,.0f} tokens/s", flush=True)
    return shards


@one_line_errors
def main() -> None:
    """``python -m tools.generate SOURCE OUT --shards N``."""
    parser = Arguments(description="Sample training text from a model.")
    parser.add_argument(
        "source",
        help="the teacher: Hugging Face directory or GGUF file; or, for on-policy text, a student: "
        ".dbb or student.safetensors",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=2048, help="rows of a shard")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--chat-share", type=float, default=0.5)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 0.85, 1.0])
    parser.add_argument(
        "--question-temperature", type=float, help="of a chat's user turns; default: the answers'"
    )
    parser.add_argument(
        "--stems", type=Path, help="file of first words of questions, one a line; default: built in"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=float("inf"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    from .weights import open_weights

    source = open_weights(args.source)
    spec = source.tokenizer_spec
    if spec is None:
        raise EdgeDBError(f"{args.source}: holds no tokenizer, and chats need its template")
    stems = read_stems(args.stems) if args.stems else STEMS
    plan = SamplingPlan(
        args.sequences,
        args.length,
        args.chat_share,
        tuple(args.temperatures),
        args.seed,
        args.question_temperature,
        hashlib.sha256("\n".join(stems).encode()).hexdigest() if args.stems else None,
    )
    scripts = chat_scripts(load_tokenizer(spec), spec, stems)
    generate(
        load_teacher(source, args.device),
        scripts,
        plan,
        args.out,
        shards=args.shards,
        max_seconds=args.max_seconds,
    )


if __name__ == "__main__":
    main()
