"""Draft models: the same text with fewer passes, whatever the draft guesses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guessing import PROMPT, repeating, rows_of_passes

import edgedb
from edgedb import EdgeDBError
from edgedb.model.kvcache import KV_DTYPES
from edgedb.ops import library
from edgedb.run.draft import Draft
from edgedb.run.loop import Loop, Turn
from edgedb.run.speculative import Beside
from edgedb.run.stakes import Stakes

pytestmark = pytest.mark.skipif(
    not library.available()[0], reason="only the native backend promises bits"
)


@pytest.fixture(scope="module")
def itself(tiny_model: Path) -> edgedb.Model:
    """A model that is its own draft: every greedy guess is right."""
    return edgedb.load(tiny_model, context=200, draft=tiny_model)


@pytest.fixture(scope="module")
def guided(tiny_model: Path, other_model: Path) -> edgedb.Model:
    """A model whose draft is hardly ever right."""
    return edgedb.load(tiny_model, context=200, draft=other_model)


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have guesses of these numbers made, one after the other, whatever they cost."""

    def always(*sizes: int) -> None:
        endless = cycle(sizes)
        monkeypatch.setattr(Stakes, "size", lambda _, room, beside: min(next(endless), room))

    return always


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 0.7, "seed": 2, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"temperature": 1.0, "seed": 3, "mirostat": 2},
    {"temperature": 0.7, "seed": 4, "dry_multiplier": 1.0},
    {"temperature": 1.0, "seed": 5, "logprobs": 2},
    {"temperature": 0, "processors": repeating, "prompt_lookup": 4},
    {"temperature": 1.0, "seed": 6, "stop": ["e", "th"], "stop_ids": [80]},
    {"temperature": 0.5, "seed": 7, "logit_bias": {2: -np.inf, 70: 3.0}},
]


def _named(options: dict[str, Any]) -> str:
    return str({option: getattr(value, "__name__", value) for option, value in options.items()})


@pytest.mark.parametrize("options", OPTIONS, ids=_named)
@pytest.mark.parametrize("draft", ["itself", "guided"])
@pytest.mark.parametrize("n", [(1,), (3, 0, 5), (16,)], ids=str)
def test_the_text_is_the_same(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    guesses: Callable[..., None],
    options: dict[str, Any],
    draft: str,
    n: tuple[int, ...],
) -> None:
    model: edgedb.Model = request.getfixturevalue(draft)
    passes = rows_of_passes(model, monkeypatch)
    everything = {"max_tokens": 100, **options}
    plain = model.session()
    expected = plain.generate(PROMPT, draft_tokens=0, **{**everything, "prompt_lookup": 0})
    n_plain = len(passes)
    guesses(*n)
    session = model.session()
    found = session.generate(PROMPT, **everything)
    assert len(passes) - n_plain == n_plain - found.stats.accepted_tokens
    assert (found.text, found.tokens) == (expected.text, expected.tokens)
    assert (found.finish_reason, found.logprobs) == (expected.finish_reason, expected.logprobs)
    assert session.tokens == plain.tokens
    assert session.logits().tobytes() == plain.logits().tobytes()
    assert expected.stats.drafted_tokens == 0 < found.stats.drafted_tokens
    if draft == "itself" and options == {"temperature": 0}:
        assert found.stats.accepted_tokens == found.stats.drafted_tokens > 40
    if draft == "guided" and not options.get("prompt_lookup"):
        assert found.stats.accepted_tokens < found.stats.drafted_tokens / 3


@pytest.mark.parametrize("draft", ["itself", "guided"])
def test_a_grammar(
    request: pytest.FixtureRequest, guesses: Callable[..., None], draft: str
) -> None:
    pytest.importorskip("llguidance", reason="needs pip install '.[grammar]'")
    model: edgedb.Model = request.getfixturevalue(draft)
    guesses(3)
    for seed in range(5):
        options = {"regex": "[a-f]{20}(no|yes)", "temperature": 2.0, "seed": seed}
        expected = model.generate(PROMPT, draft_tokens=0, **options)
        assert model.generate(PROMPT, **options).tokens == expected.tokens
        assert expected.finish_reason == "stop"


@pytest.mark.parametrize("draft", ["itself", "guided"])
def test_a_full_context_a_second_turn_and_a_saved_one(
    request: pytest.FixtureRequest, guesses: Callable[..., None], draft: str, tmp_path: Path
) -> None:
    model: edgedb.Model = request.getfixturevalue(draft)
    guesses(5)
    found = []
    for draft_tokens in (0, 16):
        options = {"temperature": 0, "logit_bias": {2: -np.inf}, "draft_tokens": draft_tokens}
        session = model.session()
        session.generate(PROMPT, max_tokens=20, **options)
        session.generate([*session.tokens, 7, 8], max_tokens=20, **options)
        session.save(path := tmp_path / "saved.kv")
        loaded = model.load_session(path)
        whole = loaded.generate(loaded.tokens, **options)
        again = session.generate([*PROMPT, 3], max_tokens=9, **options)  # another answer
        assert loaded.position == 200
        found.append((path.read_bytes(), loaded.tokens, whole.text, again.tokens))
    assert found[0] == found[1]


def test_forks_and_rewinds_in_the_middle(
    itself: edgedb.Model, guesses: Callable[..., None]
) -> None:
    """What the draft has read goes along, and what it guessed leaves nothing behind."""
    guesses(7)
    session = itself.session()
    stream = session.stream(PROMPT, temperature=0)
    for _ in range(10):
        next(stream)
    stream.close()
    fork = session.fork()
    fork.prefill([3, 4])
    session.rewind(15)
    for one in (session, fork):
        fresh = itself.session()
        fresh.prefill(one.tokens)
        assert one.logits().tobytes() == fresh.logits().tobytes()
        expected = itself.generate(one.tokens, temperature=0, max_tokens=30, draft_tokens=0)
        found = one.generate(one.tokens, temperature=0, max_tokens=30)
        assert found.tokens == expected.tokens
        assert found.stats.accepted_tokens == found.stats.drafted_tokens > 20


def test_several_answers(itself: edgedb.Model, guesses: Callable[..., None]) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 1, "max_tokens": 20}
    expected = [one.tokens for one in itself.generate(PROMPT, draft_tokens=0, **options)]
    guesses(4)
    assert [one.tokens for one in itself.generate(PROMPT, **options)] == expected


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_instruction_sets_types_and_threads(
    long_model: Path, guesses: Callable[..., None], kv_dtype: str, threads: int
) -> None:
    guesses(3, 9)
    ids = [3 + i % 300 for i in range(500)]  # so that a draft's prompt takes several passes
    found = set()
    for isa in [name for name, _, runs in library.instruction_sets() if runs]:
        model = edgedb.load(
            long_model, isa=isa, threads=threads, context=600, kv_dtype=kv_dtype, draft=long_model
        )
        for draft_tokens in (0, 16):
            answer = model.generate(
                ids, max_tokens=40, temperature=0.8, seed=1, draft_tokens=draft_tokens
            )
            found.add(tuple(answer.tokens))
    assert len(found) == 1


def test_a_shorter_context_than_the_models(
    long_model: Path, tiny_model: Path, guesses: Callable[..., None]
) -> None:
    """A draft that cannot hold the whole sequence goes on from its last tokens."""
    model = edgedb.load(long_model, context=1500, draft=tiny_model)
    assert model.draft is not None and model.draft.context == 512
    options: dict[str, Any] = {"temperature": 0, "logit_bias": {2: -np.inf}, "max_tokens": 700}
    for n_prompt in (300, 700):
        ids = [3 + i % 300 for i in range(n_prompt)]
        expected = model.generate(ids, draft_tokens=0, **options)
        guesses(6)
        found = model.generate(ids, **options)
        assert found.tokens == expected.tokens
        assert found.stats.accepted_tokens > 0


def test_after_a_rest_it_begins_anew(itself: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the last tokens of a long gap only, and guesses well from them."""
    passes: list[int] = []
    ids = np.array([3 + i % 190 for i in range(190)], np.int32)
    assert itself.draft is not None
    draft = Draft(itself.draft, itself.vocab_size)
    run = Draft.run

    def counted(self: Draft, tokens: list[int], *args: Any, **more: Any) -> Any:
        passes.append(len(tokens))
        return run(self, tokens, *args, **more)

    monkeypatch.setattr(Draft, "run", counted)
    draft.catch_up(ids[:30], None)
    assert passes == [29]
    draft.catch_up(ids[:90], 64)
    assert draft.guess(ids[:90], 3) and passes == [29, 60, 1, 1, 1]
    draft.catch_up(ids, 64)
    assert sum(passes[5:]) == 64 and draft.length == 64
    alone = itself.generate(ids[125:].tolist(), max_tokens=4, temperature=0, draft_tokens=0)
    assert draft.guess(ids, 4) == alone.tokens


def test_a_cancel_while_the_draft_reads(
    itself: edgedb.Model, guesses: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses(4)
    begun = threading.Event()
    run = Draft.run

    def noted(self: Draft, *args: Any, **more: Any) -> Any:
        begun.set()
        return run(self, *args, **more)

    monkeypatch.setattr(Draft, "run", noted)
    session = itself.session()
    answer = session.generate(PROMPT, temperature=0, cancelled=begun.is_set)
    assert answer.finish_reason == "cancelled" and len(answer.tokens) <= 2
    plain = itself.generate(PROMPT, temperature=0, max_tokens=30, draft_tokens=0)
    assert session.generate(PROMPT, temperature=0, max_tokens=30).tokens == plain.tokens


def test_it_knows_who_else_is_there(itself: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a prompt, too: others of its pass will have a row each in the next one."""
    seen: list[Beside] = []
    run = Loop.run

    def beside_others(self: Loop, turn: Turn, cancelled: Any = None) -> None:
        run(self, turn, cancelled)
        turn.others, turn.rows = 3, turn.n + 40

    monkeypatch.setattr(Loop, "run", beside_others)
    monkeypatch.setattr(Stakes, "size", lambda _, room, beside: seen.append(beside) or 0)
    itself.session().generate(PROMPT, max_tokens=4)
    assert seen == [Beside(3, 3), Beside(40, 3), Beside(40, 3)]


def test_other_vocabularies_are_refused(tiny_model: Path, sentencepiece_model: Path) -> None:
    with pytest.raises(EdgeDBError, match=r"no draft for tiny\.dbb: token \d+ is .* in the model;"):
        edgedb.load(tiny_model, draft=sentencepiece_model)
    with pytest.raises(EdgeDBError, match="no such file"):
        edgedb.load(tiny_model, draft="nowhere")
    with pytest.raises(EdgeDBError, match="a draft needs the native backend"):
        edgedb.load(tiny_model, backend="numpy", draft=tiny_model)
    with pytest.raises(EdgeDBError, match="draft_tokens"):
        edgedb.load(tiny_model).generate(PROMPT, draft_tokens=128)


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_a_draft_lies_in_memory_as_its_model_does(tiny_model: Path, memory: str) -> None:
    model = edgedb.load(tiny_model, draft=tiny_model, memory=memory)
    assert model.draft is not None
    assert model.draft.file.memory == model.file.memory == memory
