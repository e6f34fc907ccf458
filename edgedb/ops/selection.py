"""What sampling needs of a vocabulary's logits, in numpy: the bits of ``native/src/select.c``."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .exactmath import exp

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer]

# Logits this far below the best are rarely among the k largest: looking at the rest first saves a
# partition of the whole vocabulary. Any value gives the same choice.
_LIKELY = np.float32(10.0)


class Selection(Protocol):
    """The part of ``Ops`` that choosing a token needs."""

    def largest(self, logits: Floats, k: int) -> tuple[Ids, Floats]: ...

    def softmax_weights(self, logits: Floats, top: float, temperature: float = 1.0) -> Doubles: ...


class NumpySelection:
    """The part of ``Ops`` that choosing a token needs."""

    def largest(self, logits: Floats, k: int) -> tuple[Ids, Floats]:
        """Ids and values of the ``k`` largest (1 to ``len(logits)``), largest first.

        Of equal ones the lowest id comes first, and a NaN before any number. The ids that a
        partition returns among equal values depend on the CPU; only the value at its boundary is
        used.
        """
        if k == 1:
            best = np.array([logits.argmax()])  # the first NaN, if there is one
            return best, logits[best]
        missing = np.isnan(logits)
        if missing.any():
            order = np.lexsort((np.where(missing, 0, -logits), ~missing))[:k]
            return order, logits[order]
        likely = np.flatnonzero(logits >= logits.max() - _LIKELY)
        if len(likely) < k:
            likely = np.arange(len(logits))
        values = logits[likely]
        if len(values) > k:
            boundary = np.partition(values, len(values) - k)[len(values) - k]
            above = np.flatnonzero(values > boundary)
            equal = np.flatnonzero(values == boundary)[: k - len(above)]
            chosen = np.union1d(above, equal)
            likely, values = likely[chosen], values[chosen]
        order = np.argsort(-values, kind="stable")
        return likely[order], values[order]

    def softmax_weights(self, logits: Floats, top: float, temperature: float = 1.0) -> Doubles:
        """``exp((logits - top) / temperature)``, float64 of the same shape."""
        # A tiny temperature sends all but the best to exp(-inf).
        with np.errstate(over="ignore", invalid="ignore"):
            return exp((logits.astype(np.float64) - top) / temperature)
