"""The tokens that remain to be drawn from: top-k, typical-p, top-p, min-p, mirostat's limit.

Sums are taken one by one in order (``cumsum``), unlike ``sum``, which has another order on each
CPU; exponentials and logarithms come from ``exactmath``. With top-k on, all is O(k) after one pass
over the logits. Without it, the cost depends on what needs the whole distribution: min-p alone
compares, top-p and mirostat take one exponential a token, typical-p sorts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..ops.exactmath import exp, log
from ..ops.selection import Doubles, Floats, Ids

if TYPE_CHECKING:
    from ..ops.selection import Selection

_NUCLEUS_GUESS = 256
_LN_2 = float.fromhex("0x1.62e42fefa39efp-1")


class Limits(NamedTuple):
    """Fields of ``SamplingParams`` with the same names."""

    top_k: int
    typical_p: float
    top_p: float
    min_p: float


class Candidates(NamedTuple):
    """``ids`` and their logits ``values``; largest first, unless nothing was cut off."""

    ids: Ids
    values: Floats
    top: float  # the largest of values; NaN if there is one among the scores

    @classmethod
    def of(cls, scores: Floats, limits: Limits, ops: Selection) -> Candidates:
        """What ``limits`` leave of ``scores`` float32 ``(vocab,)``: at least one token."""
        top_k, typical_p, top_p, min_p = limits
        if 0 < top_k < len(scores):
            ids, values = ops.largest(scores, top_k)
            total = None
        else:
            top = float(scores.max())
            if not np.isfinite(top):
                return cls(np.arange(len(scores)), scores, top)
            if typical_p < 1:
                ids, values = ops.largest(scores, len(scores))
                total = None
            elif top_p < 1:
                total = float(np.cumsum(ops.softmax_weights(scores, top))[-1])
                return cls._nucleus(scores, total, limits, ops)
            elif min_p > 0:
                ids, values = _at_least(scores, top, min_p)
                total = None
            else:
                return cls(np.arange(len(scores)), scores, top)
        top = float(values[0])
        if not np.isfinite(top):
            return cls(ids, values, top)
        if typical_p < 1:
            kept = _typical(ops.softmax_weights(values, top), values, top, typical_p)
            ids, values = ids[kept], values[kept]
            top = float(values[0])
        if top_p < 1 or min_p > 0:
            size = _size(ops.softmax_weights(values, top), total, top_p, min_p)
            ids, values = ids[:size], values[:size]
        return cls(ids, values, top)

    @classmethod
    def _nucleus(cls, scores: Floats, total: float, limits: Limits, ops: Selection) -> Candidates:
        """Top-p of the whole vocabulary needs its total weight but rarely its whole order."""
        count = _NUCLEUS_GUESS
        while True:
            count = min(count, len(scores))
            ids, values = ops.largest(scores, count)
            top = float(values[0])
            weights = ops.softmax_weights(values, top)
            size = _size(weights, total, limits.top_p, limits.min_p)
            if size < count or count == len(scores):
                return cls(ids[:size], values[:size], top)
            count *= 8

    @staticmethod
    def below_surprise(
        scores: Floats, top: float, temperature: float, bits: float, ops: Selection
    ) -> tuple[Ids, Doubles]:
        """Ids of at most ``bits`` of surprise, and their weights; most likely first, at least one.

        There are at most ``2 ** bits`` of them.
        """
        weights = ops.softmax_weights(scores, top, temperature)
        total = float(np.cumsum(weights)[-1])
        least = total * float(exp(-max(bits, 0.0) * _LN_2))
        ids = np.flatnonzero(weights >= min(least, 1.0))
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        return ids, weights[ids]


def _at_least(scores: Floats, top: float, min_p: float) -> tuple[Ids, Floats]:
    """All tokens that may have ``min_p`` of the best one's weight, and hardly more; in order."""
    bound = top + math.log(min_p) - 1e-3 * max(1.0, abs(top))  # what is left decides, not this
    ids = np.flatnonzero(scores >= bound)
    values = scores[ids]
    order = np.argsort(-values, kind="stable")
    return ids[order], values[order]


def _size(weights: Doubles, total: float | None, top_p: float, min_p: float) -> int:
    """How many of the descending ``weights`` top-p and min-p leave: at least one."""
    within = len(weights)
    # At 1 nothing is cut, although rounding may reach the total before the last token.
    if top_p < 1:
        cumulative = np.cumsum(weights)
        share = top_p * (float(cumulative[-1]) if total is None else total)
        within = int(np.searchsorted(cumulative, share)) + 1
    above = int(np.count_nonzero(weights >= min_p * weights[0]))
    return max(1, min(within, above, len(weights)))


def _typical(weights: Doubles, values: Floats, top: float, typical_p: float) -> Ids:
    """Indices, ascending, of locally typical tokens (arXiv 2202.00666): those whose surprise is
    nearest to the average, until they have ``typical_p`` of the probability."""
    total = np.cumsum(weights)[-1]
    surprises = float(log(total)) - (values.astype(np.float64) - top)
    probable = weights > 0  # 0 * inf would be NaN
    entropy = np.cumsum(weights[probable] * surprises[probable])[-1] / total
    order = np.argsort(np.abs(surprises - entropy), kind="stable")
    mass = np.cumsum(weights[order])
    size = int(np.searchsorted(mass, typical_p * float(mass[-1]))) + 1
    return np.sort(order[:size])


def draw(weights: Doubles, random: float) -> int:
    """The index that ``random`` in [0, 1) falls on."""
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    drawn = int(np.searchsorted(cumulative, random * total, side="right"))
    # Rounding can make the product equal to the total: the last token with any weight then.
    return min(drawn, int(np.searchsorted(cumulative, total)))


def surprise(weights: Doubles, index: int) -> float:
    """``-log2`` of the probability of one of ``weights``."""
    return float(log(np.cumsum(weights)[-1]) - log(weights[index])) / _LN_2
