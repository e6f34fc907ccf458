"""Perplexity against a plain computation from the model's own logits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb import EdgeDBError
from edgedb.measure.evaluate import perplexity

TEXT = "the cat sat on the mat and looked at the moon, which looked back. " * 12


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model)


def plain_nll(model: edgedb.Model, ids: list[int]) -> float:
    logits = model.logits(ids).astype(np.float64)
    total = 0.0
    for row, target in zip(logits[:-1], ids[1:], strict=True):
        total -= row[target] - np.logaddexp.reduce(row)
    return total


def test_windows_are_independent_and_score_all_but_their_first_token(model: edgedb.Model) -> None:
    window = 20
    ids = model.tokenize(TEXT, add_bos=False)
    bos = model.tokenizer_spec.add_bos
    body = window - bos
    result = perplexity(model, TEXT, window=window, max_windows=3)
    total = 0.0
    for i in range(3):
        tokens = ids[i * body : (i + 1) * body]
        total += plain_nll(model, [model.tokenizer_spec.bos_id or 0, *tokens] if bos else tokens)
    assert result.n_windows == 3
    assert result.n_scored == 3 * (window - 1)
    assert math.isclose(result.nll, total / result.n_scored, rel_tol=1e-5)
    assert math.isclose(result.perplexity, math.exp(result.nll), rel_tol=1e-9)
    assert "3 independent windows of 20 tokens" in result.protocol


def test_a_window_larger_than_a_batch(model: edgedb.Model) -> None:
    ids = model.tokenize(TEXT, add_bos=False)[:200]
    text = model.detokenize(ids)
    if model.tokenize(text, add_bos=False) != ids or model.tokenizer_spec.add_bos:
        pytest.skip("the tiny tokenizer does not round-trip this text")
    result = perplexity(model, text, window=len(ids))
    assert math.isclose(result.nll, plain_nll(model, ids) / (len(ids) - 1), rel_tol=1e-5)


def test_a_short_text_is_one_window(model: edgedb.Model) -> None:
    ids = model.tokenize("the cat", add_bos=False)
    result = perplexity(model, "the cat", window=64)
    assert result.n_windows == 1
    assert result.window == len(ids) + result.bos
    assert result.n_text_tokens == len(ids)


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("", {}, "fewer than two"),
        (TEXT, {"window": 1}, "window"),
        (TEXT, {"window": 10**9}, "window"),
        (TEXT, {"window": 16, "max_windows": 0}, "max_windows"),
    ],
)
def test_impossible_requests(
    model: edgedb.Model, text: str, options: dict[str, int], match: str
) -> None:
    with pytest.raises(EdgeDBError, match=match):
        perplexity(model, text, **options)


def test_progress_reaches_the_end(model: edgedb.Model) -> None:
    seen: list[tuple[int, int]] = []
    perplexity(
        model, TEXT, window=16, max_windows=4, progress=lambda done, n, _: seen.append((done, n))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
