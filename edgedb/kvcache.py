"""Keys and values of the positions read so far, one pair of buffers a layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .config import ModelConfig
from .ops import AttentionShape, Ops
from .ops.narrow_cache import row_bytes

KV_DTYPES = ("float16", "float32", "int8")


class KVCache:
    """Room for ``capacity`` positions; ``length`` of them are filled.

    Memory is reserved at once but committed page by page as the context grows. Bytes when full:
    ``2 * n_layers * n_kv_heads * capacity * row``. A row is ``2 * head_dim`` in float16, ``4 *
    head_dim`` in float32, and ``head_dim + 4 * ceil(head_dim / 64)`` in int8, with a scale for each
    group of 64.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, capacity: int, dtype: str = "float16"
    ) -> None:
        self.capacity = capacity
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.shape = AttentionShape(config.n_heads, config.n_kv_heads, config.head_dim, capacity)
        row = row_bytes(config.head_dim) if dtype == "int8" else config.head_dim
        layer_shape = (config.n_kv_heads, capacity, row)
        self.layers = [
            (ops.buffer(layer_shape, self.dtype), ops.buffer(layer_shape, self.dtype))
            for _ in range(config.n_layers)
        ]

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes when its context is full."""
        return sum(k.array.nbytes + v.array.nbytes for k, v in self.layers)

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        self.length = min(self.length, length)

    def filled(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and filled part of every array, ``[n_kv_heads, length, row]``, as views."""
        for i, (keys, values) in enumerate(self.layers):
            yield f"layers.{i}.keys", keys.array[:, : self.length]
            yield f"layers.{i}.values", values.array[:, : self.length]

    def copy_from(self, other: KVCache) -> None:
        """Take over the filled positions of ``other``, a cache of the same model and type."""
        self.length = other.length
        for (_, mine), (_, theirs) in zip(self.filled(), other.filled(), strict=True):
            mine[...] = theirs
