"""Microbenchmarks of the native kernels: ``pytest bench/bench_kernels.py --benchmark-only``.

Every instruction set that this CPU has and each of its kernels for pairs, at 1 and 2 threads.
``extra_info`` carries GB/s of weights and GMAC/s (one multiply-add for each weight, pair, token),
from the fastest round. "Cold" weights are 94 MB, more than the caches of most CPUs hold; the others
stay cached.
"""

from __future__ import annotations

import numpy as np
import operations
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edgedb.format.tensors import (
    DenseTensor,
    Int8Tensor,
    LinearTensor,
    PairTensor,
    planes_of,
    tile_grid,
)
from edgedb.ops import library
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.native import NativeOps
from edgedb.ops.values import ACTIVATIONS

if not library.available()[0]:
    pytest.skip(library.available()[1], allow_module_level=True)

ISAS = [name for name, _, runs in library.instruction_sets() if runs]
KERNELS = [(isa, kernel) for isa in ISAS for kernel in library.kernels(isa)]

# name -> (kind, rows, cols, pairs)
MATRICES = {
    "smollm2 gate_up, 1 pair": ("pairs", 3072, 576, 1),
    "smollm2 gate_up, 1.5 pairs": ("pairs", 3072, 576, 1.5),
    "smollm2 attn_out, 2 pairs": ("pairs", 576, 576, 2),
    "smollm2 head, int8": ("int8", 49152, 576, 0),
    "7b attn_out, 1 pair": ("pairs", 4096, 4096, 1),
    "7b attn_out, 1.5 pairs": ("pairs", 4096, 4096, 1.5),
    "cold, 1 pair": ("pairs", 81920, 4096, 1),
    "cold, 1.5 pairs": ("pairs", 81920, 4096, 1.5),
    "float32": ("float32", 1024, 576, 0),
    "float16": ("float16", 1024, 576, 0),
}


def make(kind: str, rows: int, cols: int, pairs: float) -> LinearTensor:
    """Random weights."""
    rng = np.random.Generator(np.random.PCG64(1))
    tiles, groups = tile_grid(rows, cols)
    if kind == "pairs":
        n, half = divmod(planes_of(pairs), 2)
        blocks = aligned_zeros((n, tiles, groups, 1152), np.uint8)
        blocks[...] = rng.integers(0, 256, (groups, 1152), np.uint8)
        blocks[..., 1024:] &= 63
        last = aligned_zeros((tiles, groups, 576), np.uint8) if half else None
        if last is not None:
            last[...] = blocks[0, ..., -576:]
        return PairTensor(blocks, np.ones((n + half, rows), np.float32), rows, cols, last)
    if kind == "int8":
        codes = aligned_zeros((tiles, groups, 4096), np.int8)
        codes[...] = rng.integers(-127, 128, (groups, 4096), np.int8)
        return Int8Tensor(codes, np.ones((tiles, groups, 64), np.float32), rows, cols)
    weight = aligned_zeros((rows, cols), kind)
    weight[...] = rng.standard_normal((rows, cols))
    return DenseTensor(weight)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("isa", "kernel"), KERNELS)
@pytest.mark.parametrize("n", [1, 128], ids=["decode", "prompt"])
@pytest.mark.parametrize("name", MATRICES)
def test_matmul(
    benchmark: BenchmarkFixture, name: str, n: int, isa: str, kernel: str, threads: int
) -> None:
    if n > 1 and (name.startswith("cold") or name.endswith("head, int8")):
        pytest.skip("read once for a whole prompt")
    if MATRICES[name][0] != "pairs" and kernel != library.kernels(isa)[0]:
        pytest.skip("has no pairs")
    ops = NativeOps(isa, threads, kernel)
    tensor = make(*MATRICES[name])
    matrix = ops.matrix(tensor)
    x = ops.buffer((n, tensor.cols))
    x.array[...] = np.random.Generator(np.random.PCG64(2)).standard_normal(x.array.shape)
    out = ops.buffer((n, tensor.rows))
    benchmark(ops.matmul, matrix, x, out, n)
    macs = n * tensor.rows * tensor.cols * getattr(tensor, "planes", 2) / 2
    seconds = benchmark.stats["min"]
    benchmark.extra_info["GB/s"] = round(tensor.nbytes / seconds / 1e9, 2)
    benchmark.extra_info["GMAC/s"] = round(macs / seconds / 1e9, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 128], ids=["decode", "prompt"])
@pytest.mark.parametrize("position", [0, 1024])
def test_attention(benchmark: BenchmarkFixture, position: int, n: int, isa: str) -> None:
    """One layer of SmolLM2: 9 heads share 3 key/value heads of 64, float16 cache."""
    ops = NativeOps(isa, 1)
    shape = operations.Heads(9, 3, 64, 2048)
    qkv, out = ops.buffer((n, 15 * 64)), ops.buffer((n, 9 * 64))
    k, v = (ops.buffer((3, 2048, 64), np.float16) for _ in range(2))
    benchmark(operations.attention, ops, qkv, k, v, out, n, position, shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("operation", ["rmsnorm", "layernorm", *ACTIVATIONS, "rope", "embed"])
def test_small_operations(benchmark: BenchmarkFixture, operation: str, isa: str) -> None:
    """What SmolLM2 does to one token beside products and attention; the call itself included."""
    ops = NativeOps(isa, 1)
    x, weight, out = ops.buffer((1, 576)), ops.buffer((576,)), ops.buffer((1, 576))
    gate_up, hidden = ops.buffer((1, 3072)), ops.buffer((1, 1536))
    shape = operations.Heads(9, 3, 64, 2048)
    qkv, table = ops.buffer((1, 960)), ops.buffer((2048, 32))
    k, v = (ops.buffer((3, 2048, 64), np.float16) for _ in range(2))
    ids = ops.buffer((1,), np.int32)
    if operation == "rmsnorm":
        benchmark(operations.rmsnorm, ops, x, weight, out, 1, 1e-5)
    elif operation == "layernorm":
        benchmark(operations.layernorm, ops, x, weight, weight, out, 1, 1e-5)
    elif operation in ACTIVATIONS:
        benchmark(operations.gate, ops, operation, gate_up, hidden, 1)
    elif operation == "rope":
        benchmark(operations.rope, ops, qkv, table, table, k, v, 1, 100, shape)
    else:
        embedding = ops.matrix(make("int8", 640, 576, 0))
        benchmark(operations.embed, ops, embedding, ids, out, 1)
