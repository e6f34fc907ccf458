"""What sampling needs of a vocabulary's logits, in C (``native/src/select.c``)."""

from __future__ import annotations

import numpy as np

from ..errors import NativeError
from .library import array_pointer, lib, status_text
from .selection import Doubles, Floats, Ids, NumpySelection

# From here on a partition by numpy is quicker than a heap.
_MANY = 512


class NativeSelection(NumpySelection):
    """The part of ``Ops`` that choosing a token needs. Uses the calling thread only."""

    def largest(self, logits: Floats, k: int) -> tuple[Ids, Floats]:
        """Ids and values of the ``k`` largest (1 to ``len(logits)``), largest first.

        Of equal ones the lowest id comes first, and a NaN before any number. 10 us for the 40
        largest of 49,152.
        """
        if k > _MANY:
            return super().largest(logits, k)
        logits = np.ascontiguousarray(logits, np.float32)
        ids, values = np.empty(k, np.int32), np.empty(k, np.float32)
        status = lib.edb_select(
            array_pointer(logits),
            len(logits),
            k,
            array_pointer(ids),
            array_pointer(values),
        )
        if status:
            raise NativeError(f"select: {status_text(status)}")
        return ids, values

    def softmax_weights(self, logits: Floats, top: float, temperature: float = 1.0) -> Doubles:
        """``exp((logits - top) / temperature)``, float64 of the same shape."""
        logits = np.ascontiguousarray(logits, np.float32)
        weights = np.empty(len(logits), np.float64)
        status = lib.edb_softmax_weights(
            array_pointer(logits),
            len(logits),
            top,
            temperature,
            array_pointer(weights),
        )
        if status:
            raise NativeError(f"weights: {status_text(status)}")
        return weights
