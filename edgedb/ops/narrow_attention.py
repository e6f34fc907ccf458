"""The numerics of attention over an int8 cache: keys and queries, then weights and values, are
products of integers, exact in any order. ``native/src/attention_int8.c`` has the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..format.tensors import GROUP
from .activations import quantize
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
    codes, sq = quantize(q)
    key_codes, sk = _groups(keys, head_dim), row_scales(keys, head_dim)
    scores = np.zeros(seen.shape, np.float32)
    for g in range(sq.shape[1]):
        scores = fma(sq[:, g, None] * sk[:, g], _dot(codes[:, g], key_codes[:, g].T), scores)
    scores *= how.scale
    if how.cap is not None:
        scores = softcap(scores, how.cap)
    if how.slope is not None:
        scores -= how.slope * away.astype(np.float32)
    scores[~seen] = -np.inf
    largest = scores.max(axis=1)
    p = np.exp(scores - largest[:, None])

    value_codes, sv = _groups(values, head_dim), row_scales(values, head_dim)
    sums = np.zeros((len(q), sq.shape[1], GROUP), np.float32)
    for g in range(sq.shape[1]):
        # Each 64 columns of a value have their own scale, so their own weights.
        with np.errstate(invalid="ignore"):
            shares = np.where(seen, p * sv[:, g], np.float32(0))
        weights, sw = quantize(shares)
        for i in range(sw.shape[1]):
            part = value_codes[GROUP * i : GROUP * (i + 1), g]
            dots = _dot(weights[:, i, : len(part)], part)
            sums[:, g] = fma(sw[:, i, None], dots, sums[:, g])
    return Found(largest, p.sum(axis=1), sums.reshape(len(q), -1)[:, :head_dim])


def _groups(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The codes, ``[length, groups, 64]``, with zeros behind the head."""
    padded = np.zeros((len(rows), -(-head_dim // GROUP) * GROUP), np.int8)
    padded[:, :head_dim] = rows[:, :head_dim]
    return padded.reshape(len(rows), -1, GROUP)


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
