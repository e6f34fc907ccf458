"""Bias, repetition penalties and DRY."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedb import EdgeDBError
from edgedb.choose.penalties import (
    add_bias,
    breaker_mask,
    penalize_repetition,
    penalize_sequences,
    special_mask,
)
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer


def test_bias_is_added() -> None:
    scores = np.array([1, 2, 3], np.float32)
    add_bias(scores, np.array([0, 2]), np.array([0.5, -np.inf], np.float32))
    assert scores.tolist() == [1.5, 2, -np.inf]
    with pytest.raises(EdgeDBError, match="token 3 is not in the vocabulary of 3"):
        add_bias(scores, np.array([3]), np.ones(1, np.float32))


def test_repetition_divides_the_odds_once() -> None:
    scores = np.array([2, -2, 1], np.float32)
    penalize_repetition(scores, [0, 1, 0], 2.0, 0.0, 0.0)
    assert scores.tolist() == [1, -4, 1]


def test_presence_counts_once_and_frequency_each_time() -> None:
    scores = np.array([2, 2, 2], np.float32)
    penalize_repetition(scores, [0, 1, 0], 1.0, 0.5, 0.25)
    assert scores.tolist() == [1, 1.25, 2]


def test_exempt_tokens_keep_their_scores() -> None:
    exempt = np.array([True, False, False])
    scores = np.array([2, 2, -2], np.float32)
    penalize_repetition(scores, [0, 1, 0, 2], 2.0, 0.5, 0.25, exempt)
    assert scores.tolist() == [2, 0.25, -4.75]
    alone = np.array([2, 2, 2], np.float32)
    penalize_repetition(alone, [0, 0], 2.0, 0.5, 0.25, exempt)
    assert alone.tolist() == [2, 2, 2]
    scores = np.zeros(3, np.float32)
    penalize_sequences(scores, np.array([1, 0, 1, 2, 1], np.int32), 1.0, 2.0, 1, None, exempt)
    assert scores.tolist() == [0, 0, -1], "both would prolong a repetition of 1"


def by_definition(
    history: list[int], vocab: int, multiplier: float, base: float, allowed: int, breakers: set[int]
) -> list[float]:
    """Every earlier place, compared token by token."""
    scores = [0.0] * vocab
    for end in range(len(history) - 1):
        length = 0
        while (
            length <= end
            and history[end - length] == history[-1 - length]
            and history[-1 - length] not in breakers
        ):
            length += 1
        if length >= max(allowed, 1):
            penalty = multiplier * base ** (length - allowed)
            scores[history[end + 1]] = min(scores[history[end + 1]], -penalty)
    return scores


@given(
    history=st.lists(st.integers(0, 3), max_size=25),
    allowed=st.integers(0, 4),
    breakers=st.sets(st.integers(0, 3), max_size=2),
)
def test_dry_follows_its_definition(history: list[int], allowed: int, breakers: set[int]) -> None:
    scores = np.zeros(4, np.float32)
    mask = np.isin(np.arange(4), list(breakers))
    penalize_sequences(scores, np.array(history, np.int32), 0.8, 1.75, allowed, mask)
    expected = by_definition(history, 4, 0.8, 1.75, allowed, breakers)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_an_endless_repetition_has_a_finite_penalty() -> None:
    scores = np.zeros(2, np.float32)
    penalize_sequences(scores, np.ones(5000, np.int32), 10.0, 50.0, 2)
    assert scores[0] == 0 and scores[1] == np.float32(-1e30)


def test_breakers_are_tokens_with_the_text_in_them(tiny_spec: TokenizerSpec) -> None:
    tokenizer = load_tokenizer(tiny_spec)
    mask = breaker_mask(tokenizer, (330, ("\n", "th")))
    assert mask[[0, 1, 2]].all(), "special tokens"
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        assert mask[token] == (b"\n" in data or b"th" in data or token < 3)
    assert len(mask) == 330 and not mask[320:].any(), "rows that no token has"
    assert np.flatnonzero(special_mask(tokenizer, 330)).tolist() == [0, 1, 2]
