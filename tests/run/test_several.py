"""Several answers to one prompt: written at once, each as it is alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passes import Passes

import edgedb
from edgedb.run.completion import Chunk, Stats
from edgedb.run.together import Cancelled, together

PROMPT = [5, 9, 2, 40, 17, 23, 8]
OPTIONS: dict[str, Any] = {"max_tokens": 40, "temperature": 1.5, "logit_bias": {2: -np.inf}}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=100, threads=1)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, model: edgedb.Model) -> Passes:
    return Passes(monkeypatch, model)


def test_they_are_written_in_the_same_passes(model: edgedb.Model, passes: Passes) -> None:
    options = {**OPTIONS, "prompt_lookup": 0}
    alone = [model.generate(PROMPT, seed=7 + i, **options).tokens for i in range(4)]
    passes.hold(1, 3)  # the first one reads the prompt
    answers = model.generate(PROMPT, n=4, seed=7, **options)
    assert [one.tokens for one in answers] == alone
    assert passes.most >= 3 and passes.read[0] == [len(PROMPT)]
    passes.hold(1, 3)
    chunks = list(model.generate(PROMPT, n=4, seed=7, stream=True, **options))
    assert passes.most >= 3
    for index, tokens in enumerate(alone):
        mine = [c for c in chunks if c.index == index]
        assert [c.token for c in mine if c.token is not None] == tokens
        assert [c.finish_reason for c in mine if c.finish_reason] == ["length"]


def test_a_cancel_ends_each_with_its_reason(model: edgedb.Model) -> None:
    asked = iter(range(1000))
    answers = model.generate(PROMPT, n=5, cancelled=lambda: next(asked) > 30, **OPTIONS)
    assert [one.finish_reason for one in answers] == ["cancelled"] * 5
    assert all(len(one.tokens) < 40 for one in answers)


def test_a_processor_gets_one_answer_after_the_other(model: edgedb.Model) -> None:
    seen: list[tuple[int, int]] = []

    def note(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append((threading.get_ident(), len(ids)))
        return logits

    model.generate(PROMPT, n=2, processors=note, **{**OPTIONS, "max_tokens": 3})
    assert seen == [(threading.get_ident(), n) for n in (7, 8, 9, 7, 8, 9)]


def _counted(n: int, ended: list[str], cancelled: Cancelled) -> Iterator[Chunk]:
    try:
        for token in range(n):
            if cancelled():
                return
            yield Chunk("", token, None, Stats())
    finally:
        ended.append("an answer")


def test_what_one_raises_ends_all() -> None:
    ended: list[str] = []

    def fail(cancelled: Cancelled) -> Iterator[Chunk]:
        yield Chunk("", 1, None, Stats())
        raise ZeroDivisionError

    def long(cancelled: Cancelled) -> Iterator[Chunk]:
        return _counted(10**9, ended, cancelled)

    with pytest.raises(ZeroDivisionError):
        list(together([long, fail, long], 3))
    assert ended == ["an answer"] * 2


def test_a_reader_that_goes_away_ends_them() -> None:
    ended: list[str] = []
    chunks = together([lambda cancelled: _counted(10**9, ended, cancelled)] * 3, 3)
    while len(seen := {next(chunks).index for _ in range(10)}) < 2:
        assert not ended
    chunks.close()  # type: ignore[attr-defined]
    assert len(seen) <= len(ended) <= 3


def test_so_many_at_once_and_no_more() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def answer(cancelled: Cancelled) -> Iterator[Chunk]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        yield from _counted(5, [], cancelled)
        with lock:
            running[0] -= 1

    chunks = list(together([answer] * 7, 3))
    assert 1 <= most[0] <= 3
    for index in range(7):
        assert [c.token for c in chunks if c.index == index] == [*range(5)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_none_is_begun_before_somebody_reads(at_once: int) -> None:
    begun: list[int] = []

    def answer(cancelled: Cancelled) -> Iterator[Chunk]:
        begun.append(1)
        yield Chunk("", 1, None, Stats())

    chunks = together([answer] * 2, at_once)
    assert not begun
    assert len(list(chunks)) == 2
