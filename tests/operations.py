"""Single operations: those of the C library as it offers them, and of numpy and numba as a program
runs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgedb.model.rope import RopeTables
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.library import ffi, lib, pointers, status_text
from edgedb.ops.native import NativeOps
from edgedb.ops.native_memory import cache_kind
from edgedb.ops.pages import PAGE, Page, PageLayout, PageTable
from edgedb.ops.recorder import Recorder
from edgedb.ops.values import RopeTable, Value


class Heads(NamedTuple):
    """Sizes of an attention; ``capacity`` is the number of positions its cache holds."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    capacity: int

    def value(self) -> Value:
        """Attention of this shape, with every key."""
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        m = Recorder(1e-5, self.head_dim)
        return m.attention(m.input(q_size), m.input(kv_size), m.input(kv_size))


class Paged:
    """One layer's cache in pages, as the C library and the walkers have it."""

    def __init__(self, ops: Any, heads: Heads, dtype: Any) -> None:
        self.heads, self.dtype = heads, np.dtype(dtype)
        self.layout = PageLayout([(heads.n_kv_heads, heads.head_dim)], self.dtype.name)
        self.table = PageTable(self.layout, heads.capacity)
        for index in range(-(-heads.capacity // PAGE)):
            buffer = ops.buffer((self.layout.page_bytes,), np.uint8)
            self.table.put(index, Page(buffer, self))

    @property
    def arrays(self) -> np.ndarray:
        """Keys and values, ``[2, n_kv_heads, capacity, row]``: a copy."""
        rows = self.table.layer(0).rows(self.heads.capacity)
        return np.stack(rows)[:, :, : self.heads.capacity]

    def fill(self, arrays: np.ndarray) -> None:
        """The other way."""
        self.table.layer(0).store(arrays[0], arrays[1], 0)

    @property
    def pages(self) -> Any:
        """For C."""
        return pointers([page.buffer.ptr for page in self.table.pages], "void *")

    @property
    def shape(self) -> Any:
        h = self.heads
        sizes = (h.n_heads, h.n_kv_heads, h.head_dim, cache_kind(self.dtype), h.capacity)
        return ffi.new("edb_attention_shape *", sizes)


class Tables:
    """cos and sin of every position, whole."""

    def __init__(self, table: RopeTable, n_positions: int) -> None:
        tables = RopeTables(table, n_positions)
        tables.cover(n_positions)
        self.cos, self.sin = tables.cos, tables.sin


def check(status: int) -> None:
    assert status == lib.EDB_OK, status_text(status)


def embed(ops: NativeOps, table: Any, ids: Any, out: Any, n: int) -> None:
    check(lib.edb_embed(ops.context, table.struct, ids.ptr, out.ptr, n))


def rmsnorm(ops: NativeOps, x: Any, weight: Any, out: Any, n: int, eps: float) -> None:
    check(lib.edb_rmsnorm(ops.context, x.ptr, weight.ptr, out.ptr, n, weight.width, eps))


def layernorm(
    ops: NativeOps, x: Any, weight: Any, shift: Any, out: Any, n: int, eps: float
) -> None:
    """shift: None for none."""
    pointer = ffi.NULL if shift is None else shift.ptr
    arguments = (x.ptr, weight.ptr, pointer, out.ptr, n, weight.width, eps)
    check(lib.edb_layernorm(ops.context, *arguments))


def gate(ops: NativeOps, activation: str, gate_up: Any, out: Any, n: int) -> None:
    code = getattr(lib, f"EDB_OP_{activation.upper()}")
    check(lib.edb_gate(ops.context, code, gate_up.ptr, out.ptr, n, out.width))


def rope(ops: NativeOps, qkv: Any, cos: Any, sin: Any, cache: Paged, n: int, at: int) -> None:
    """Rotates q in place, and stores rotated k and plain v."""
    arguments = (cache.shape, qkv.ptr, cos.ptr, sin.ptr, cache.pages, n, at)
    check(lib.edb_rope(ops.context, *arguments))


def attention(ops: NativeOps, qkv: Any, cache: Paged, out: Any, n: int, at: int) -> None:
    """Of rotated queries, against what the cache holds."""
    shape = cache.shape
    size = lib.edb_attention_scratch_bytes(ops.context, shape, n, shape.capacity)
    scratch = aligned_zeros((size,), np.uint8)
    memory = ffi.from_buffer(scratch)
    arguments = (shape, qkv.ptr, cache.pages, out.ptr, n, at, memory, size)
    check(lib.edb_attention(ops.context, *arguments))


def walked_attention(
    ops: Any,
    qkv: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    cache: Paged,
    at: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and attention of a walker's backend: the rotated queries, and what they see."""
    heads = cache.heads
    n, dim = len(qkv), heads.head_dim
    q_size, kv_size = heads.n_heads * dim, heads.n_kv_heads * dim
    parts = np.split(qkv, [q_size, q_size + kv_size], axis=1)
    rows = slice(at, at + n)
    turned = [
        ops.rope(np.ascontiguousarray(x).reshape(n, -1, dim), cos[rows], sin[rows]).reshape(n, -1)
        for x in parts[:2]
    ]
    values = np.ascontiguousarray(parts[2])
    return turned[0], ops.attention(*turned, values, cache.table.layer(0), at, heads.value(), None)
