"""What sampling needs of a vocabulary's logits, in C (``native/src/select.c``)."""

from __future__ import annotations

import numpy as np

from ..errors import NativeError
from .selection import Doubles, Floats, Ids, NumpySelection

try:
    from .._native import ffi, lib
except ImportError:  # ops/native.py says so
    ffi = lib = None


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
            ffi.from_buffer("float[]", logits),
            len(logits),
            k,
            ffi.from_buffer("int32_t[]", ids),
            ffi.from_buffer("float[]", values),
        )
        if status:
            raise NativeError(f"select: {ffi.string(lib.edb_status_text(status)).decode()}")
        return ids, values

    def softmax_weights(self, logits: Floats, top: float, temperature: float = 1.0) -> Doubles:
        """``exp((logits - top) / temperature)``, float64 of the same shape."""
        logits = np.ascontiguousarray(logits, np.float32)
        weights = np.empty(len(logits), np.float64)
        status = lib.edb_softmax_weights(
            ffi.from_buffer("float[]", logits),
            len(logits),
            top,
            temperature,
            ffi.from_buffer("double[]", weights),
        )
        if status:
            raise NativeError(f"weights: {ffi.string(lib.edb_status_text(status)).decode()}")
        return weights
