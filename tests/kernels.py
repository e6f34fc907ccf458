"""Random weights of every kind, and the C library on every instruction set this CPU has."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest

from edgedb.format.tensors import DenseTensor, Int8Tensor, LinearTensor, PairTensor
from edgedb.ops import library
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.native import NativeOps

if not library.available()[0]:
    pytest.skip(library.available()[1], allow_module_level=True)

ISAS = [name for name, _, runs in library.instruction_sets() if runs]
THREADS = (1, 2, 3)
EVERYWHERE = list(itertools.product(ISAS, THREADS))


@functools.cache
def ops_of(isa: str = ISAS[0], threads: int = 1) -> NativeOps:
    return NativeOps(isa, threads)


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def pair_tensor(rows: int, cols: int, pairs: float, seed: int = 1) -> PairTensor:
    """Random bytes, padding included: nothing beyond the matrix may reach a result. Signs of codes
    are free. ``pairs`` may end in a half, also of nothing else."""
    rng, tiles, groups, odd = random(seed), -(-rows // 64), -(-cols // 64), pairs % 1 > 0
    pairs = int(pairs)
    blocks = aligned_zeros((pairs, tiles, groups, 1152), np.uint8)
    blocks[...] = rng.integers(0, 256, blocks.shape, np.uint8)
    c1 = rng.integers(-127, 128, (pairs, tiles, groups, 64))
    c2 = rng.integers(np.maximum(-127, -127 - c1), np.minimum(127, 127 - c1) + 1)
    blocks[..., 1024:1088] = c1.astype(np.int8).view(np.uint8)
    blocks[..., 1088:] = c2.astype(np.int8).view(np.uint8)
    scale, half = rng.standard_normal((pairs + odd, rows), np.float32), None
    if odd:
        half = aligned_zeros((tiles, groups, 576), np.uint8)
        half[...] = rng.integers(0, 256, half.shape, np.uint8)
        half[..., 512:] = rng.integers(-127, 128, half[..., 512:].shape, np.int8).view(np.uint8)
    return PairTensor(blocks, scale, rows, cols, half)


def int8_tensor(rows: int, cols: int, seed: int = 1) -> Int8Tensor:
    rng, tiles, groups = random(seed), -(-rows // 64), -(-cols // 64)
    codes = aligned_zeros((tiles, groups, 4096), np.int8)
    codes[...] = rng.integers(-127, 128, codes.shape, np.int8)
    return Int8Tensor(codes, rng.standard_normal((tiles, groups, 64), np.float32), rows, cols)


def dense_tensor(rows: int, cols: int, dtype: Any, seed: int = 1) -> DenseTensor:
    weight = aligned_zeros((rows, cols), dtype)
    weight[...] = random(seed).standard_normal((rows, cols))
    return DenseTensor(weight)


KINDS: dict[str, Callable[[int, int], LinearTensor]] = {
    "1 pair": lambda rows, cols: pair_tensor(rows, cols, 1),
    "1.5 pairs": lambda rows, cols: pair_tensor(rows, cols, 1.5),
    "2 pairs": lambda rows, cols: pair_tensor(rows, cols, 2),
    "3 pairs": lambda rows, cols: pair_tensor(rows, cols, 3),
    "int8": int8_tensor,
    "float32": lambda rows, cols: dense_tensor(rows, cols, np.float32),
    "float16": lambda rows, cols: dense_tensor(rows, cols, np.float16),
}


def activations(n: int, size: int, seed: int = 2) -> np.ndarray:
    """Rows of different magnitude."""
    rng = random(seed)
    return rng.standard_normal((n, size), np.float32) * 10 ** rng.uniform(-3, 3, (n, 1)).astype("f")


def matmul(
    ops: NativeOps, tensor: LinearTensor, x: np.ndarray, base: np.ndarray | None = None
) -> np.ndarray:
    out = ops.buffer((len(x), tensor.rows))
    if base is not None:
        out.array[...] = base
    ops.matmul(ops.matrix(tensor), ops.wrap(x), out, len(x), add=base is not None)
    return out.array


def oracle_row(tensor: LinearTensor, row: int, x: np.ndarray) -> float:
    if isinstance(tensor, PairTensor):
        return oracle.pairs_row(
            [b for b, _ in tensor.terms()], tensor.row_scale, row, tensor.cols, x
        )
    if isinstance(tensor, Int8Tensor):
        return oracle.int8_row(tensor.codes, tensor.scales, row, tensor.cols, x)
    return oracle.dot(tensor.weight[row].astype(np.float32), x)


def bits(array: np.ndarray) -> np.ndarray:
    """float32 as integers; every NaN is the same NaN."""
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(np.float32).view(np.uint32)


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(bits(a), bits(b))
