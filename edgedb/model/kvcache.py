"""Keys and values of the positions read so far, one pair of buffers a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..ops import Ops
from ..ops.narrow_cache import row_bytes
from ..ops.program import Value

KV_DTYPES = ("float16", "float32", "int8")


class Filled(NamedTuple):
    """The filled part of one array of a cache, as a view."""

    name: str
    rows: np.ndarray  # [n_kv_heads, length, row]
    head_dim: int


class KVCache:
    """Room for ``capacity`` positions; ``length`` of them are filled.

    Memory is reserved at once but committed page by page as the context grows. Bytes when full:
    ``2 * n_layers * n_kv_heads * capacity * row``. A row is ``2 * head_dim`` in float16, ``4 *
    head_dim`` in float32, and ``head_dim + 4 * ceil(head_dim / 64)`` in int8, with a scale for each
    group of 64.
    """

    def __init__(
        self, attentions: Sequence[Value], ops: Ops, capacity: int, dtype: str = "float16"
    ) -> None:
        """attentions: what reads the cache, layer by layer (``Program.attentions``)."""
        self.capacity = capacity
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._attentions = attentions
        self.layers = []
        for attention in attentions:
            head_dim = attention["head_dim"]
            row = row_bytes(head_dim) if dtype == "int8" else head_dim
            shape = (attention["n_kv_heads"], capacity, row)
            self.layers.append((ops.buffer(shape, self.dtype), ops.buffer(shape, self.dtype)))
        self.handle = ops.cache_handle(self.layers, capacity)

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes when its context is full."""
        return sum(k.array.nbytes + v.array.nbytes for k, v in self.layers)

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        self.length = min(self.length, length)

    def filled(self) -> Iterator[Filled]:
        """Every array in order."""
        for i, (attention, arrays) in enumerate(zip(self._attentions, self.layers, strict=True)):
            for kind, buffer in zip(("keys", "values"), arrays, strict=True):
                rows = buffer.array[:, : self.length]
                yield Filled(f"layers.{i}.{kind}", rows, attention["head_dim"])

    def copy_from(self, other: KVCache) -> None:
        """Take over the filled positions of ``other``, a cache of the same model and type."""
        self.length = other.length
        for mine, theirs in zip(self.filled(), other.filled(), strict=True):
            mine.rows[...] = theirs.rows
