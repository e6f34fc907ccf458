"""Arrays and weight matrices as the C library sees them (``native/include/edgedb.h``)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..errors import NativeError
from ..format.tensors import (
    BLOCK_BYTES,
    HALF_BYTES,
    INT8_BLOCK_BYTES,
    TILE,
    Experts,
    Int8Tensor,
    LinearTensor,
    PairTensor,
    Weight,
    tile_grid,
)
from .buffer import ALIGNMENT, Buffer, aligned_zeros
from .library import array_pointer, ffi, lib, owned, struct_pointer


class NativeBuffer(Buffer):
    """A buffer with what an operation needs beside the pointer."""

    __slots__ = ("width",)

    width: int  # elements of a row

    def __init__(self, array: np.ndarray) -> None:
        if not array.flags.c_contiguous:
            raise NativeError(f"array {array.shape} is not C-contiguous")
        super().__init__(array, array_pointer(array))
        self.width = array.shape[-1] if array.ndim else 1

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: Any = np.float32) -> NativeBuffer:
        """On a 64-byte boundary."""
        return cls(aligned_zeros(shape, dtype))


def cache_kind(dtype: np.dtype[Any]) -> int:
    """What the C library calls a cache of this type."""
    kinds = {"float32": lib.EDB_F32, "float16": lib.EDB_F16, "int8": lib.EDB_INT8}
    return int(kinds[dtype.name])


class NativeMatrix:
    """A weight matrix as C sees it."""

    __slots__ = ("cols", "rows", "struct")

    def __init__(self, tensor: LinearTensor) -> None:
        self.rows, self.cols = tensor.rows, tensor.cols
        self.struct = struct_pointer("edb_matrix *", _fields(tensor))


class NativeExperts:
    """The matrices of all experts as C sees them: an array of them."""

    __slots__ = ("struct",)

    def __init__(self, stack: Experts) -> None:
        fields = [_fields(stack[i]) for i in range(len(stack))]
        needed = [value for one in fields for value in one.values()]
        self.struct = owned(ffi.new("edb_matrix[]", fields), lambda _: None, *needed)


def native_matrix(tensor: Weight) -> NativeMatrix | NativeExperts:
    """A weight in place if it lies on a 64-byte boundary, and copied to one if not."""
    return NativeExperts(tensor) if isinstance(tensor, Experts) else NativeMatrix(tensor)


def _fields(tensor: LinearTensor) -> dict[str, Any]:
    """Of an ``edb_matrix``."""
    rows, cols = tensor.rows, tensor.cols
    grid = tile_grid(rows, cols)
    pairs, scales, half = 0, None, None
    if isinstance(tensor, PairTensor):
        kind, pairs = lib.EDB_PAIRS, tensor.pairs
        data = _checked(tensor.blocks, np.uint8, (pairs, *grid, BLOCK_BYTES))
        scales = _checked(tensor.row_scale, np.float32, ((tensor.planes + 1) // 2, rows))
        if tensor.half is not None:
            half = _checked(tensor.half, np.uint8, (*grid, HALF_BYTES))
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
    return {
        "kind": kind,
        "pairs": pairs,
        "rows": rows,
        "cols": cols,
        "data": array_pointer(_aligned(data)),
        "scales": ffi.NULL if scales is None else array_pointer(scales),
        "half": ffi.NULL if half is None else array_pointer(_aligned(half)),
    }


class Scratch:
    """Memory that operations work in, one at a time; grows when one asks for more."""

    def __init__(self) -> None:
        self.grow(1 << 16)

    def grow(self, size: int) -> None:
        # Both at once: Ctrl-C may come between any two steps.
        self.memory = array_pointer(aligned_zeros((size,), np.uint8)), size


class ThreadScratch(Scratch, threading.local):
    """Each thread's own."""


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
