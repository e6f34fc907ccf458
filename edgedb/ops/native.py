"""The operations in C (``native/include/edgedb.h``), called through cffi.

Every pointer is prepared once, in ``buffer``, ``wrap`` and ``matrix``; an operation is then one
call, which releases the interpreter's lock, and a look at its status. That no memory goes while C
works in it is the business of the pointers: see ``library``.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import NativeError
from ..tensors import (
    BLOCK_BYTES,
    INT8_BLOCK_BYTES,
    TILE,
    Int8Tensor,
    LinearTensor,
    PairTensor,
    tile_grid,
)
from . import library
from .buffer import ALIGNMENT, Buffer, aligned_zeros
from .cores import physical_cores
from .library import array_pointer, ffi, lib, owned, struct_pointer, text_of
from .native_selection import NativeSelection

if TYPE_CHECKING:
    from ..llama import Layer
    from . import AttentionShape

# Beyond this many cores decoding has long met the memory's limit and only the joins get dearer.
MAX_DEFAULT_THREADS = 16


def available() -> tuple[bool, str]:
    """Whether the C library can be used here, and which instruction set or why not."""
    if lib is None:
        return False, " ".join(library.problem.split())
    return True, f"instruction set {next(name for name, _, runs in instruction_sets() if runs)}"


def instruction_sets() -> list[tuple[str, str, bool]]:
    """``(name, description, runs on this CPU)`` of every set in the library, best first."""
    return [
        (
            text_of(lib.edb_isa_name(i)),
            text_of(lib.edb_isa_description(i)),
            bool(lib.edb_isa_supported(i)),
        )
        for i in range(lib.edb_isa_count())
    ]


def kernels(isa: str | None = None) -> list[str]:
    """Names of the pair kernels of an instruction set, the fastest measured there first; empty for
    one that cannot run here. Default: the best set of this CPU."""
    name = isa.encode() if isa else ffi.NULL
    found: list[str] = []
    while (text := lib.edb_kernel_name(name, len(found))) != ffi.NULL:
        found.append(text_of(text))
    return found


class NativeBuffer(Buffer):
    """A buffer with what an operation needs beside the pointer."""

    __slots__ = ("kind", "width")

    kind: int  # EDB_F32, EDB_F16 or EDB_INT8, as a cache
    width: int  # elements of a row

    def __init__(self, array: np.ndarray) -> None:
        if not array.flags.c_contiguous:
            raise NativeError(f"array {array.shape} is not C-contiguous")
        super().__init__(array, array_pointer(array))
        kinds = {np.dtype(np.float16): lib.EDB_F16, np.dtype(np.int8): lib.EDB_INT8}
        self.kind = kinds.get(array.dtype, lib.EDB_F32)
        self.width = array.shape[-1] if array.ndim else 1


class NativeMatrix:
    """A weight matrix as C sees it."""

    __slots__ = ("cols", "rows", "struct")

    def __init__(self, tensor: LinearTensor) -> None:
        rows, cols = self.rows, self.cols = tensor.rows, tensor.cols
        grid = tile_grid(rows, cols)
        pairs, scales = 0, None
        if isinstance(tensor, PairTensor):
            kind, pairs = lib.EDB_PAIRS, tensor.pairs
            data = _checked(tensor.blocks, np.uint8, (pairs, *grid, BLOCK_BYTES))
            scales = _checked(tensor.row_scale, np.float32, (pairs, rows))
        elif isinstance(tensor, Int8Tensor):
            kind = lib.EDB_INT8
            data = _checked(tensor.codes, np.int8, (*grid, INT8_BLOCK_BYTES))
            scales = _checked(tensor.scales, np.float32, (*grid, TILE))
        elif tensor.weight.dtype == np.float16:
            kind = lib.EDB_F16
            data = _checked(tensor.weight, np.float16, (rows, cols))
        else:
            kind = lib.EDB_F32
            data = _checked(tensor.weight, np.float32, (rows, cols))
        fields = {
            "kind": kind,
            "pairs": pairs,
            "rows": rows,
            "cols": cols,
            "data": array_pointer(_aligned(data)),
            "scales": ffi.NULL if scales is None else array_pointer(scales),
        }
        self.struct = struct_pointer("edb_matrix *", fields)


class _Scratch(threading.local):
    """Memory that one thread's operations work in; grows when one asks for more."""

    def __init__(self) -> None:
        self.grow(1 << 16)

    def grow(self, size: int) -> None:
        # Both at once: Ctrl-C may come between any two steps.
        self.memory = array_pointer(aligned_zeros((size,), np.uint8)), size


class NativeOps(NativeSelection):
    """``Ops`` in C. Threads may share one; each then needs its own buffers.

    Buffers and matrices are those that ``buffer``, ``wrap`` and ``matrix`` of this class made.
    """

    name = "native"

    def __init__(
        self, isa: str | None = None, threads: int | None = None, kernel: str | None = None
    ) -> None:
        """``isa``: a name of ``instruction_sets()``, default the best this CPU has; ``threads``:
        default the physical cores, at most 16; ``kernel``: a name of ``kernels(isa)``, default its
        first. Raises ``NativeError`` if one of them cannot be had.
        """
        if lib is None:
            raise NativeError(available()[1])
        self.threads = threads or min(physical_cores(), MAX_DEFAULT_THREADS)
        self._requested = (isa, kernel)
        self._start()
        self.isa = text_of(lib.edb_context_isa(self._context))
        self.kernel = text_of(lib.edb_context_kernel(self._context))
        self._scratch = _Scratch()
        self._shape: tuple[AttentionShape | None, int, Any] = (None, 0, None)
        _running.add(self)

    def _start(self) -> None:
        isa, kernel = (name.encode() if name else ffi.NULL for name in self._requested)
        created = ffi.new("edb_pool **")
        status = lib.edb_pool_create(self.threads, created)
        if status:
            raise NativeError(f"{self.threads} threads: {text_of(lib.edb_status_text(status))}")
        pool = owned(created[0], lib.edb_pool_destroy)
        created = ffi.new("edb_context **")
        status = lib.edb_context_create(isa, kernel, pool, created)
        if status == lib.EDB_ERR_KERNEL:
            listed = ", ".join(kernels(self._requested[0]))
            raise NativeError(f"unknown kernel {self._requested[1]!r}; choose one of {listed}")
        if status:
            usable = ", ".join(name for name, _, runs in instruction_sets() if runs)
            raise NativeError(
                f"instruction set {self._requested[0]!r} cannot run here; this CPU runs {usable}"
            )
        self._context = owned(created[0], lib.edb_context_destroy, pool)

    def buffer(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NativeBuffer:
        """A zeroed array on a 64-byte boundary."""
        return NativeBuffer(aligned_zeros(shape, dtype))

    def wrap(self, array: np.ndarray) -> NativeBuffer:
        """An existing C-contiguous array, not copied."""
        return NativeBuffer(array)

    def matrix(self, tensor: LinearTensor) -> NativeMatrix:
        """A weight matrix, in place if it lies on a 64-byte boundary and copied to one if not."""
        return NativeMatrix(tensor)

    def embed(self, table: NativeMatrix, ids: Buffer, out: Buffer, n: int) -> None:
        """``out[t] = table[ids[t]]``; ids int32 ``[n]``, out ``[n, cols]``."""
        status = lib.edb_embed(self._context, table.struct, ids.ptr, out.ptr, n)
        if status:
            _fail("embed", status)

    def rmsnorm(self, x: Buffer, weight: Any, out: Buffer, n: int, eps: float) -> None:
        """``out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight``; x, out ``[n, d]``."""
        status = lib.edb_rmsnorm(self._context, x.ptr, weight.ptr, out.ptr, n, weight.width, eps)
        if status:
            _fail("rmsnorm", status)

    def matmul(self, matrix: NativeMatrix, x: Any, out: Any, n: int, add: bool = False) -> None:
        """``out[t] = W x[t]``, or ``+=`` with ``add``; x ``[n, cols]``, out ``[n, rows]``."""
        if x.width != matrix.cols or out.width != matrix.rows:
            raise NativeError(
                f"matmul: {matrix.rows} x {matrix.cols} matrix, x has {x.width} columns "
                f"and out {out.width}"
            )
        scratch = self._scratch
        status = lib.edb_matmul(
            self._context, matrix.struct, x.ptr, out.ptr, n, add, *scratch.memory
        )
        if status:
            if status != lib.EDB_ERR_SCRATCH:
                _fail("matmul", status)
            scratch.grow(lib.edb_matmul_scratch_bytes(self._context, matrix.struct, n))
            self.matmul(matrix, x, out, n, add)

    def rope(
        self,
        qkv: Buffer,
        cos: Buffer,
        sin: Buffer,
        k_cache: Any,
        v_cache: Buffer,
        n: int,
        position: int,
        shape: AttentionShape,
    ) -> None:
        """Rotate q in place; store rotated k and plain v at ``position .. position + n - 1``."""
        status = lib.edb_rope(
            self._context,
            self._native_shape(shape, k_cache.kind),
            qkv.ptr,
            cos.ptr,
            sin.ptr,
            k_cache.ptr,
            v_cache.ptr,
            n,
            position,
        )
        if status:
            _fail("rope", status)

    def attention(
        self,
        qkv: Buffer,
        k_cache: Any,
        v_cache: Buffer,
        out: Buffer,
        n: int,
        position: int,
        shape: AttentionShape,
    ) -> None:
        """Causal attention: query t sees the keys of positions ``0 .. position + t``."""
        scratch = self._scratch
        native_shape = self._native_shape(shape, k_cache.kind)
        status = lib.edb_attention(
            self._context,
            native_shape,
            qkv.ptr,
            k_cache.ptr,
            v_cache.ptr,
            out.ptr,
            n,
            position,
            *scratch.memory,
        )
        if status:
            if status != lib.EDB_ERR_SCRATCH:
                _fail("attention", status)
            # For the whole context at once, so that a growing conversation asks only here.
            capacity = shape.capacity
            scratch.grow(lib.edb_attention_scratch_bytes(self._context, native_shape, n, capacity))
            self.attention(qkv, k_cache, v_cache, out, n, position, shape)

    def swiglu(self, gate_up: Buffer, out: Any, n: int) -> None:
        """``out = silu(gate) * up``; gate_up ``[n, 2 f]`` holds gate, then up; out ``[n, f]``."""
        status = lib.edb_swiglu(self._context, gate_up.ptr, out.ptr, n, out.width)
        if status:
            _fail("swiglu", status)

    def fuse_layer(self, layer: Layer, cos: Buffer, sin: Buffer, eps: float) -> Any:
        """The struct that ``fused_layer`` reads."""
        return struct_pointer(
            "edb_layer *",
            {
                "attn_norm": layer.attn_norm.ptr,
                "attn_qkv": layer.attn_qkv.struct,
                "attn_out": layer.attn_out.struct,
                "mlp_norm": layer.mlp_norm.ptr,
                "mlp_gate_up": layer.mlp_gate_up.struct,
                "mlp_down": layer.mlp_down.struct,
                "cos": cos.ptr,
                "sin": sin.ptr,
                "eps": eps,
            },
        )

    def fuse_buffers(self, x: Buffer, qkv: Buffer, att: Buffer, gate_up: Buffer) -> Any:
        """The struct of a sequence's buffers."""
        fields = {"x": x.ptr, "qkv": qkv.ptr, "att": att.ptr, "gate_up": gate_up.ptr}
        return struct_pointer("edb_layer_buffers *", fields)

    def fused_layer(
        self,
        layer: Any,
        buffers: Any,
        k_cache: Any,
        v_cache: Buffer,
        n: int,
        position: int,
        shape: AttentionShape,
    ) -> None:
        """A whole layer in one call, with the bits of its operations one by one."""
        scratch = self._scratch
        native_shape = self._native_shape(shape, k_cache.kind)
        status = lib.edb_decoder_layer(
            self._context,
            layer,
            native_shape,
            buffers,
            k_cache.ptr,
            v_cache.ptr,
            n,
            position,
            *scratch.memory,
        )
        if status:
            if status != lib.EDB_ERR_SCRATCH:
                _fail("decoder layer", status)
            size = lib.edb_decoder_layer_scratch_bytes(
                self._context, layer, native_shape, n, shape.capacity
            )
            scratch.grow(size)
            self.fused_layer(layer, buffers, k_cache, v_cache, n, position, shape)

    def _native_shape(self, shape: AttentionShape, cache_kind: int) -> Any:
        """The struct for ``shape``; all layers of a model ask for the same one."""
        last, kind, struct = self._shape
        if last is not shape or kind != cache_kind:
            struct = ffi.new("edb_attention_shape *")
            struct.n_heads, struct.n_kv_heads = shape.n_heads, shape.n_kv_heads
            struct.head_dim, struct.capacity = shape.head_dim, shape.capacity
            struct.cache_kind = cache_kind
            self._shape = (shape, cache_kind, struct)
        return struct


def _checked(array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array, which C will read without looking back."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise NativeError(
            f"weights are {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        )
    return array


def _aligned(array: np.ndarray) -> np.ndarray:
    if array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def _fail(operation: str, status: int) -> NoReturn:
    raise NativeError(f"{operation}: {text_of(lib.edb_status_text(status))}")


# A forked child has none of its parent's threads: the C library then works on the calling thread,
# which is safe and slow, so the child gets a pool of its own.
_running: weakref.WeakSet[NativeOps] = weakref.WeakSet()


def _restart_pools() -> None:
    for ops in list(_running):
        ops._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_pools)
