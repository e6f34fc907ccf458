"""The numerics of attention over an int8 cache: keys and queries, then weights and values, are
products of integers, exact in any order. ``native/src/attention_int8.c`` has the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..format.tensors import GROUP
from .activations import in_groups, quantize_to
from .functions import softcap
from .narrow_cache import row_scales
from .pages import PAGE
from .selection import Floats


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a * b + c`` of float32 arrays through float64, where the product is exact."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


@dataclass(frozen=True)
class Scoring:
    """What becomes of a product of query and key."""

    scale: np.float32
    cap: float | None
    slope: np.float32 | None  # lost for each position between the two


@dataclass
class Found:
    """What queries found in the keys so far: sums on the scale of the largest score."""

    largest: Floats  # [n]
    total: Floats  # [n]
    values: Floats  # [n, head_dim]


def find(
    q: Floats, keys: np.ndarray, values: np.ndarray, distance: np.ndarray, window: int, how: Scoring
) -> Found:
    """Queries ``[n, head_dim]`` of a head against rows of the cache, int8 ``[length, row]``.
    distance ``[n, length]``: how far each key lies behind each query; those from 0 to
    ``window - 1`` are seen, of each query at least one. Blocks of ``PAGE`` keys join in order."""
    n = len(q)
    found = Found(np.full(n, -np.inf, np.float32), np.zeros(n, np.float32), np.zeros_like(q))
    for start in range(0, len(keys), PAGE):
        block = slice(start, start + PAGE)
        away = distance[:, block]
        seen = (away >= 0) & (away < window)
        rows = np.flatnonzero(seen.any(axis=1))
        if len(rows):
            here = _find_in_block(q[rows], keys[block], values[block], away[rows], seen[rows], how)
            _join(found, rows, here)
    return found


def _find_in_block(
    q: Floats,
    keys: np.ndarray,
    values: np.ndarray,
    away: np.ndarray,
    seen: np.ndarray,
    how: Scoring,
) -> Found:
    head_dim = q.shape[1]
    codes, sq = _quantize_queries(q)
    key_codes, sk = in_groups(keys[:, :head_dim]), row_scales(keys, head_dim)
    scores = np.zeros(seen.shape, np.float32)
    for g in range(sq.shape[1]):
        scores = fma(sq[:, g, None] * sk[:, g], _dot(codes[:, g], key_codes[:, g].T), scores)
    scores *= how.scale
    if how.cap is not None:
        scores = softcap(scores, how.cap)
    if how.slope is not None:
        scores -= how.slope * away.astype(np.float32)
    scores[~seen] = -np.inf
    scores = in_groups(scores, -np.inf)
    p, largest = _soften(scores)
    most = largest.max(axis=1)
    factors = np.exp(largest - most[:, None])  # [n, tiles]
    totals = p.sum(axis=2).astype(np.float32) * np.float32(2**-14) * factors
    total = np.where(np.isnan(scores).any(axis=(1, 2)), np.float32(np.nan), totals.sum(axis=1))

    value_codes, sv = in_groups(values[:, :head_dim]), row_scales(values, head_dim)
    sums = np.zeros((len(q), sq.shape[1], GROUP), np.float32)
    for g in range(sq.shape[1]):
        # Each 64 columns of a value have their own scale, so their own weights.
        weights, sw = _weigh(p, in_groups(np.where(seen, sv[:, g], np.float32(0))))
        for i in range(weights.shape[1]):
            part = value_codes[GROUP * i : GROUP * (i + 1), g]
            dots = _dot(weights[:, i, : len(part)], part)
            sums[:, g] = fma((sw * factors)[:, i, None], dots, sums[:, g])
    return Found(most, total, sums.reshape(len(q), -1)[:, :head_dim])


def _quantize_queries(q: Floats) -> tuple[np.ndarray, Floats]:
    """Codes ``[n, groups, 64]`` and scales: of columns ``2i``, ``2i + 1``, ``2i + 32`` and
    ``2i + 33`` codes above 0, and those below, add up to 128 at most; 126 before rounding."""
    groups = in_groups(q)
    with np.errstate(over="ignore", invalid="ignore"):
        sides = np.maximum(np.stack([groups, -groups]), 0).reshape(2, *groups.shape[:2], 2, 16, 2)
        two = sides[..., 0, :, :] + sides[..., 1, :, :]
        largest = (two[..., 0] + two[..., 1]).max(axis=(0, -1)) * np.float32(127 / 126)
    return quantize_to(largest, groups)


def _soften(scores: Floats) -> tuple[np.ndarray, Floats]:
    """``2**14 * exp(score - largest)`` in integers, and the largest of each tile."""
    with np.errstate(invalid="ignore"):
        largest = scores.max(axis=2)
        octaves = (largest[..., None] - scores) * np.float32(-2048 / np.log(2)) - np.float32(1)
    u = np.rint(np.clip(np.nan_to_num(octaves, nan=-(2**15)), -(2**15), -1)).astype(np.int64)
    f = (u & 2047) << 5  # of an octave, in 2**16ths
    grown = f * ((f * ((f * 2515 >> 16) + 7469) >> 16) + 22779) >> 16  # 2**15 * (2**f - 1)
    powers = np.where(u >> 11 > -16, 1 << np.maximum((u >> 11) + 15, 0), 0)
    return _product(grown + 2**15 >> 1, powers), largest


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of fractions of ``2**15``, rounded."""
    return (a * b + 2**14) >> 15


def _weigh(p: np.ndarray, scales: Floats) -> tuple[np.ndarray, Floats]:
    """Codes ``[n, tiles, 64]`` of ``p`` times the scales of values; scales ``[n, tiles]``. Eight
    codes add up to 252 at most, two neighbours of each 16, and those two alone to 125."""
    largest = scales.max(axis=2)
    no_scale = ~(np.isfinite(scales) & ~np.signbit(scales)).all(axis=2)
    counts = (largest >= 2.0**-100) & ~no_scale
    factors = np.divide(np.float32(32767), largest, out=np.zeros_like(largest), where=counts)
    words = np.zeros(scales.shape, np.int64)
    words[counts] = np.rint(scales[counts] * factors[counts][:, None])
    shares = _product(p, words)
    two = shares.reshape(*shares.shape[:2], 4, 8, 2).sum(axis=4)
    bounds = np.maximum(2 * two.max(axis=(2, 3)), two.sum(axis=2).max(axis=2))
    with np.errstate(divide="ignore"):
        steps = np.rint(
            np.minimum(np.float32(248 * 2**19) / bounds.astype(np.float32), 32767) - 0.5
        )
    codes = _product(_product(shares, steps.astype(np.int64)[..., None]), np.int64(2**11))
    most = np.where(no_scale, np.float32(np.nan), np.where(counts, largest, np.float32(0)))
    return codes, (most * (np.float32(32) / steps.astype(np.float32))).astype(np.float32)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of int8 matrices, 64 columns of ``a``: exact in float32."""
    return a.astype(np.float32) @ b.astype(np.float32)


def _join(a: Found, rows: np.ndarray, b: Found) -> None:
    """``b``, what the queries ``rows`` found in later keys, into ``a``."""
    largest = np.maximum(a.largest[rows], b.largest)
    of_a, of_b = np.exp(a.largest[rows] - largest), np.exp(b.largest - largest)
    a.total[rows] = fma(b.total, of_b, a.total[rows] * of_a)
    scaled = a.values[rows] * of_a[:, None]
    a.values[rows] = fma(b.values, of_b[:, None], scaled)
    a.largest[rows] = largest
