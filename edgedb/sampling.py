"""Choosing the next token from logits: the same choice on every CPU for the same seed.

Order, as in llama.cpp: repetition penalty, top-k, top-p, min-p, temperature.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import EdgeDBError
from .exactmath import exp

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.integer]

# Logits this far below the best are rarely among the top k: looking at the rest first saves a
# partition of the whole vocabulary. Any value gives the same choice.
_LIKELY = np.float32(10.0)
_NUCLEUS_GUESS = 256


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. Values out of range raise ``EdgeDBError``."""

    temperature: float = 0.7  # 0 takes the most likely token, the rest is then without effect
    top_k: int = 40  # only the k most likely tokens; 0 = all
    top_p: float = 0.95  # only the smallest set of tokens with this much probability; 1 = all
    min_p: float = 0.05  # only tokens this likely relative to the most likely one; 0 = all
    repetition_penalty: float = 1.0  # divides the odds of recent tokens; 1 = off
    repetition_window: int = 64  # tokens that count as recent; 0 = none
    seed: int | None = None  # None: another one each time

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf)
        if not self.repetition_penalty:
            raise EdgeDBError("repetition_penalty = 0: expected more than 0 (1 = off)")
        _check_int("top_k", self.top_k)
        _check_int("repetition_window", self.repetition_window)
        if self.seed is not None:
            _check_int("seed", self.seed)


def _check(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high or math.isinf(float(value)):  # type: ignore[arg-type]
        wanted = f"{low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
        raise EdgeDBError(f"{name} = {value!r}: expected {wanted}")


def _check_int(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
        raise EdgeDBError(f"{name} = {value!r}: expected a whole number of at least 0")


class Sampler:
    """Draws tokens under ``params``; keeps the state of the random numbers between calls."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def sample(self, logits: Floats, history: Sequence[int] | Ids = ()) -> int:
        """The next token after ``history``, from ``logits``: float32 ``(vocab,)``, left as is.

        Of equally likely tokens the lowest id comes first. Raises ``EdgeDBError`` if a logit is
        NaN or +inf, or if all are -inf.
        """
        params = self.params
        scores = _penalized(logits, history, params)
        best = int(scores.argmax())  # the first NaN, if there is one
        if not np.isfinite(scores[best]):
            raise EdgeDBError(
                "the model's output is not finite; its file or the prompt's numbers are damaged"
            )
        if params.temperature == 0:
            return best
        top = float(scores[best])
        ids = _kept(scores, top, params)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to exp(-inf)
            weights = exp((scores[ids].astype(np.float64) - top) / params.temperature)
        # cumsum adds one by one in order, unlike sum, which has a different order on each CPU.
        cumulative = np.cumsum(weights)
        total = cumulative[-1]
        drawn = int(np.searchsorted(cumulative, self._random.random() * total, side="right"))
        # Rounding can make the product equal to the total: the last token with any weight then.
        return int(ids[min(drawn, int(np.searchsorted(cumulative, total)))])


def _penalized(logits: Floats, history: Sequence[int] | Ids, params: SamplingParams) -> Floats:
    """Logits with the repetition penalty of CTRL (arXiv 1909.05858, section 4.1)."""
    if params.repetition_penalty == 1 or not params.repetition_window or not len(history):
        return logits
    recent = np.unique(np.asarray(history[-params.repetition_window :], np.intp))
    penalty = np.float32(params.repetition_penalty)
    scores = logits.copy()
    values = scores[recent]
    scores[recent] = np.where(values > 0, values / penalty, values * penalty)
    return scores


def _kept(scores: Floats, top: float, params: SamplingParams) -> Ids:
    """Ids that top-k, top-p and min-p leave. Most likely first, unless nothing is cut off."""
    limited = 0 < params.top_k < len(scores)
    if params.top_p == 1 and params.min_p == 0:
        return _most_likely(scores, params.top_k, top) if limited else np.arange(len(scores))
    if limited:
        ids = _most_likely(scores, params.top_k, top)
        return ids[: _nucleus_size(scores[ids], top, None, params)]
    # Top-p over the whole vocabulary needs its total probability but rarely its whole order.
    total = float(np.cumsum(exp(scores.astype(np.float64) - top))[-1])
    count = _NUCLEUS_GUESS
    while True:
        count = min(count, len(scores))
        ids = _most_likely(scores, count, top)
        size = _nucleus_size(scores[ids], top, total, params)
        if size < count or count == len(scores):
            return ids[:size]
        count *= 8


def _nucleus_size(ordered: Floats, top: float, total: float | None, params: SamplingParams) -> int:
    """How many of the ``ordered`` logits (descending) top-p and min-p leave: at least one."""
    weights = exp(ordered.astype(np.float64) - top)
    cumulative = np.cumsum(weights)
    share = params.top_p * (float(cumulative[-1]) if total is None else total)
    # At 1 nothing is cut, although rounding may reach the total before the last token.
    within = len(ordered)
    if params.top_p < 1:
        within = int(np.searchsorted(cumulative, share)) + 1
    above = int(np.count_nonzero(weights >= params.min_p))
    return max(1, min(within, above, len(ordered)))


def _most_likely(scores: Floats, count: int, top: float) -> Ids:
    """Ids of the ``count`` largest scores, largest first; of equal ones the lowest id first.

    The ids that a partition returns among equal values depend on the CPU; only the value at its
    boundary is used.
    """
    likely = np.flatnonzero(scores >= np.float32(top) - _LIKELY)
    if len(likely) < count:
        likely = np.arange(len(scores))
    values = scores[likely]
    if len(values) > count:
        boundary = np.partition(values, len(values) - count)[len(values) - count]
        above = np.flatnonzero(values > boundary)
        equal = np.flatnonzero(values == boundary)[: count - len(above)]
        chosen = np.union1d(above, equal)
        likely, values = likely[chosen], values[chosen]
    order = np.argsort(-values, kind="stable")
    return likely[order]
