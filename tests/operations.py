"""Single operations: those of the C library as it offers them, and of numpy and numba as a program
runs them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgedb.model.rope import RopeTables
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.library import ffi, lib, status_text
from edgedb.ops.native import NativeOps
from edgedb.ops.native_memory import NativeBuffer
from edgedb.ops.program import Recorder, RopeTable


class Heads(NamedTuple):
    """Sizes of an attention; ``capacity`` is the number of positions its cache holds."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    capacity: int

    def struct(self, cache: NativeBuffer) -> Any:
        sizes = (self.n_heads, self.n_kv_heads, self.head_dim, cache.kind, self.capacity)
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


def rope(
    ops: NativeOps, qkv: Any, cos: Any, sin: Any, k: Any, v: Any, n: int, at: int, heads: Heads
) -> None:
    """Rotates q in place, and stores rotated k and plain v."""
    shape = heads.struct(k)
    check(lib.edb_rope(ops.context, shape, qkv.ptr, cos.ptr, sin.ptr, k.ptr, v.ptr, n, at))


def attention(
    ops: NativeOps, qkv: Any, k: Any, v: Any, out: Any, n: int, at: int, heads: Heads
) -> None:
    """Of rotated queries, against what the caches hold."""
    shape = heads.struct(k)
    size = lib.edb_attention_scratch_bytes(ops.context, shape, n, heads.capacity)
    scratch = aligned_zeros((size,), np.uint8)
    memory = ffi.from_buffer(scratch)
    arguments = (shape, qkv.ptr, k.ptr, v.ptr, out.ptr, n, at, memory, size)
    check(lib.edb_attention(ops.context, *arguments))


def walked_attention(
    ops: Any,
    qkv: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    k: Any,
    v: Any,
    at: int,
    heads: Heads,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and attention of a walker's backend: the rotated queries, and what they see."""
    n, dim = len(qkv), heads.head_dim
    q_size, kv_size = heads.n_heads * dim, heads.n_kv_heads * dim
    parts = np.split(qkv, [q_size, q_size + kv_size], axis=1)
    rows = slice(at, at + n)
    turned = [
        ops.rope(np.ascontiguousarray(x).reshape(n, -1, dim), cos[rows], sin[rows]).reshape(n, -1)
        for x in parts[:2]
    ]
    m = Recorder(1e-5, dim, RopeTable((1.0,) * (dim // 2)))
    value = m.attention(m.input(q_size), m.input(kv_size), m.input(kv_size))
    values = np.ascontiguousarray(parts[2])
    return turned[0], ops.attention(*turned, values, (k, v), at, value)
