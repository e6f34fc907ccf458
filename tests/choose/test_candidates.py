"""What top-k, typical-p, top-p, min-p and mirostat leave, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from edgedb.choose.candidates import Candidates, Limits, draw, surprise
from edgedb.ops.selection import NumpySelection

OPS = NumpySelection()


def logits_of(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def kept_by_definition(logits: np.ndarray, limits: Limits) -> list[int]:
    """The slow definition: sort everything, then cut."""
    order = np.array(sorted(range(len(logits)), key=lambda i: (-logits[i], i)))
    if limits.top_k:
        order = order[: limits.top_k]
    if limits.typical_p < 1:
        p = np.exp(logits[order].astype(np.float64) - logits.max())
        p /= p.sum()
        information = np.full(len(p), np.inf)
        np.log(p, out=information, where=p > 0)
        information = np.abs(information)
        entropy = float((p[p > 0] * information[p > 0]).sum())
        by_distance = np.argsort(np.abs(information - entropy), kind="stable")
        size = int(np.searchsorted(np.cumsum(p[by_distance]), limits.typical_p)) + 1
        order = order[np.sort(by_distance[:size])]
    weights = np.exp(logits[order].astype(np.float64) - logits[order[0]])
    n_nucleus = len(order)
    if limits.top_p < 1:
        cumulative = np.cumsum(weights / weights.sum())
        n_nucleus = int(np.searchsorted(cumulative, limits.top_p)) + 1
    n_min = int((weights >= limits.min_p).sum())
    return [int(i) for i in order[: max(1, min(n_nucleus, n_min))]]


@pytest.mark.parametrize("size", [1, 7, 63, 65, 4096, 49152])
@pytest.mark.parametrize(
    "limits",
    [
        Limits(40, 1, 1, 0),
        Limits(1, 1, 0.9, 0),
        Limits(1000, 1, 0.5, 0),
        Limits(0, 1, 0.3, 0),
        Limits(0, 1, 0.999, 0),
        Limits(0, 1, 0.999, 0.01),
        Limits(0, 1, 1, 0.05),
        Limits(0, 1, 1, 1),
        Limits(50, 1, 0.9, 0.1),
        Limits(3, 1, 1e-9, 0),
        Limits(40, 0.5, 1, 0),
        Limits(0, 0.5, 1, 0),
        Limits(0, 0.2, 0.9, 0.01),
        Limits(100, 0.9, 0.9, 0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_what_is_kept_follows_the_definition(size: int, limits: Limits, scale: float) -> None:
    logits = logits_of(size, seed=size, scale=scale)
    found = Candidates.of(logits, limits, OPS)
    kept, expected = found.ids.tolist(), kept_by_definition(logits, limits)
    # Where nothing is cut there is no order either.
    assert kept == expected or (len(kept) == size and kept == sorted(expected))
    assert found.values.tobytes() == logits[found.ids].tobytes()
    assert found.top == float(found.values.max())


def test_equal_logits_keep_the_lowest_ids() -> None:
    logits = np.zeros(5000, np.float32)
    logits[4000] = 1
    assert Candidates.of(logits, Limits(5, 1, 1, 0), OPS).ids.tolist() == [4000, 0, 1, 2, 3]


def test_nothing_is_cut_when_all_is_off() -> None:
    logits = np.array([0, -np.inf, 1, -50], np.float32)
    assert Candidates.of(logits, Limits(0, 1, 1, 0), OPS).ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("typical_p", [0.3, 0.9])
@pytest.mark.parametrize("top_k", [0, 3])
def test_forbidden_tokens_do_not_disturb_typical_sampling(typical_p: float, top_k: int) -> None:
    logits = np.array([1, -np.inf, 0.5, -np.inf, -1], np.float32)
    assert set(Candidates.of(logits, Limits(top_k, typical_p, 1, 0), OPS).ids) <= {0, 2, 4}


@pytest.mark.parametrize("limits", [Limits(2, 1, 0.9, 0), Limits(0, 1, 0.9, 0), Limits(0, 1, 1, 0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_damaged_distribution_shows_in_its_top(limits: Limits, bad: float) -> None:
    logits = logits_of(100)
    logits[17] = bad
    assert not np.isfinite(Candidates.of(logits, limits, OPS).top)


@pytest.mark.parametrize("bits", [0.1, 3.0, 8.0, 100.0, -5.0])
def test_mirostat_keeps_tokens_of_little_surprise(bits: float) -> None:
    logits = logits_of(5000)
    ids, weights = Candidates.below_surprise(logits, float(logits.max()), 0.8, bits, OPS)
    p = np.exp(logits.astype(np.float64) / 0.8)
    p /= p.sum()
    expected = np.flatnonzero(-np.log2(p) <= bits)
    assert sorted(ids.tolist()) == (expected.tolist() or [int(logits.argmax())])
    assert (np.diff(weights) <= 0).all() and len(ids) <= max(1, 2**bits)


def test_draws_fall_where_the_random_number_points() -> None:
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    assert [draw(weights, r) for r in (0, 0.49, 0.5, 0.74, 0.75, 0.999999)] == [0, 0, 1, 1, 2, 2]
    assert draw(weights, 1.0) == 2, "rounding may reach the total; nothing has no weight"


def test_surprise_in_bits() -> None:
    assert surprise(np.array([2.0, 1.0, 1.0]), 1) == pytest.approx(2.0, abs=1e-15)
