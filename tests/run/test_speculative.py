"""Prompt lookup: the same text, with fewer passes where the text repeats itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guessing import PROMPT, repeating, rows_of_passes
from hypothesis import given
from hypothesis import strategies as st

import edgedb
from edgedb import EdgeDBError
from edgedb.ops import library
from edgedb.run.speculative import Lookup, find_continuation

pytestmark = pytest.mark.skipif(
    not library.available()[0], reason="only the native backend promises bits"
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=200)


@pytest.fixture
def passes(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the forward passes; a guess never seems to cost anything."""
    measured = Lookup.measured
    monkeypatch.setattr(Lookup, "measured", lambda self, n, seconds: measured(self, n, 1e-9))
    return rows_of_passes(model, monkeypatch)


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 0.7, "seed": 2, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 3, "mirostat": 2},
    {"temperature": 0.7, "seed": 4, "dry_multiplier": 1.0},
    {"temperature": 1.0, "seed": 5, "logprobs": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("processors", [(), repeating], ids=["free", "repeating"])
@pytest.mark.parametrize("lookup", [1, 3, 16])
def test_the_text_is_the_same(
    model: edgedb.Model,
    passes: list[int],
    options: dict[str, Any],
    processors: Callable[..., Any],
    lookup: int,
) -> None:
    everything = {"max_tokens": 100, "processors": processors, **options}
    plain = model.session()
    expected = plain.generate(PROMPT, prompt_lookup=0, **everything)
    n_plain = len(passes)
    session = model.session()
    found = session.generate(PROMPT, prompt_lookup=lookup, **everything)
    n_guided = len(passes) - n_plain
    assert n_guided == n_plain - found.stats.accepted_tokens
    assert (found.text, found.tokens) == (expected.text, expected.tokens)
    assert found.logprobs == expected.logprobs
    assert session.tokens == plain.tokens
    assert session.logits().tobytes() == plain.logits().tobytes()
    assert expected.stats.drafted_tokens == 0
    if processors and "repetition_penalty" not in options and "mirostat" not in options:
        assert found.stats.accepted_tokens > 5


def test_a_full_context_and_a_second_turn(model: edgedb.Model, passes: list[int]) -> None:
    options = {"temperature": 0, "processors": repeating, "logit_bias": {2: -np.inf}}
    guided, plain = model.session(), model.session()
    for session, lookup in ((guided, 16), (plain, 0)):
        session.generate(PROMPT, prompt_lookup=lookup, max_tokens=20, **options)
        session.generate([*session.tokens, 7, 8], prompt_lookup=lookup, **options)
    assert guided.tokens == plain.tokens and guided.position == 200


def test_a_fork_and_a_rewind_in_the_middle(model: edgedb.Model) -> None:
    """Guesses that were read but not taken leave nothing behind."""
    options = {"temperature": 0, "processors": repeating, "prompt_lookup": 8, "max_tokens": 9}
    session = model.session()
    session.generate(PROMPT, **options)
    fork = session.fork()
    fork.prefill([3, 4])
    session.rewind(15)
    fresh, other = model.session(), model.session()
    fresh.prefill(session.tokens)
    other.prefill(fork.tokens)
    assert session.logits().tobytes() == fresh.logits().tobytes()
    assert fork.logits().tobytes() == other.logits().tobytes()


@given(ids=st.lists(st.integers(0, 3), max_size=30), size=st.integers(1, 5))
def test_the_continuation_is_that_of_the_latest_place_alike(ids: list[int], size: int) -> None:
    expected: list[int] = []
    for ngram in (2, 3):
        for start in range(len(ids) - ngram):
            if ids[start : start + ngram] == ids[-ngram:]:
                expected = ids[start + ngram : start + ngram + size]
    assert find_continuation(np.array(ids, np.int32), size) == expected


def test_guesses_that_cost_more_than_they_save_become_rare() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3], np.int32)
    lookup = Lookup(8)
    lookup.measured(0, 0.01)
    made = 0
    for _ in range(200):
        guesses = lookup.draft(ids, 100)
        made += bool(guesses)
        lookup.measured(len(guesses), 0.03 if guesses else 0.01)
    assert 3 < made < 15


def test_right_guesses_grow() -> None:
    ids = np.array([*range(50), 0, 1, 2], np.int32)
    lookup = Lookup(16)
    lookup.measured(0, 0.01)
    sizes = []
    for _ in range(4):
        guesses = lookup.draft(ids, 100)
        sizes.append(len(guesses))
        lookup.measured(len(guesses), 0.02)
        for _ in guesses:
            lookup.hit()
    assert sizes == [4, 8, 16, 16]
    assert lookup.accepted == lookup.drafted == 44
    assert lookup.draft(ids, 3) == [3, 4, 5] and lookup.draft(ids, 0) == []


def test_a_number_out_of_range(model: edgedb.Model) -> None:
    for wrong in (-1, 128):
        with pytest.raises(EdgeDBError, match="prompt_lookup"):
            model.generate(PROMPT, prompt_lookup=wrong)
