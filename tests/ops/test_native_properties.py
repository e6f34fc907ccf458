"""Random shapes, weights and activations, special values among them: the same bits from every
instruction set, exact kernel and number of threads, for tokens together and one by one."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import operations
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kernels import ISAS, KINDS, assert_same_bits, bits, matmul, oracle_row, random

from edgedb.format.tensors import Int8Tensor, LinearTensor, PairTensor
from edgedb.ops import library
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.native import NativeOps
from edgedb.ops.values import ACTIVATIONS

KERNELS = [(isa, k) for isa in ISAS for k in library.kernels(isa) if k != "popcount4"]
ODD = (1, 7, 63, 64, 65, 4096)
MACS = 1 << 21  # of one example, so that scalar code stays quick
FLOAT_MAX = float(np.finfo(np.float32).max)
SPECIAL = (
    0.0,
    -0.0,
    np.nan,
    np.inf,
    -np.inf,
    1e-45,
    -1e-40,
    127 * 2.0**-126,
    FLOAT_MAX,
    -FLOAT_MAX,
)

sizes = st.sampled_from(ODD) | st.integers(1, 200)
tokens = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 12, 13, 63, 65, 130))
seeds = st.integers(0, 2**32 - 1)
# Where a value goes: token, column (both wrap around), and how many columns from there on.
specials = st.lists(
    st.tuples(
        st.integers(0, 129), st.integers(0, 4095), st.integers(1, 70), st.sampled_from(SPECIAL)
    ),
    max_size=4,
)
few = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def ops_of(isa: str, kernel: str, threads: int) -> NativeOps:
    return NativeOps(isa, threads, kernel)


def scaled(tensor: LinearTensor, exponent: int) -> LinearTensor:
    """The weights times a power of two: products near both ends of float32's range."""
    factor = np.float32(2.0**exponent)
    with np.errstate(all="ignore"):
        if isinstance(tensor, PairTensor):
            return replace(tensor, row_scale=tensor.row_scale * factor)
        if isinstance(tensor, Int8Tensor):
            return Int8Tensor(tensor.codes, tensor.scales * factor, tensor.rows, tensor.cols)
    return tensor


def activations(
    n: int, cols: int, seed: int, special: list[tuple[int, int, int, float]]
) -> np.ndarray:
    rng = random(seed)
    x = rng.standard_normal((n, cols), np.float32)
    x *= (10.0 ** rng.uniform(-6, 6, (n, 1))).astype(np.float32)
    for token, column, count, value in special:
        x[token % n, column % cols : column % cols + count] = value
    return x


@pytest.mark.parametrize("kind", KINDS)
@few
@given(
    rows=sizes, cols=sizes, n=tokens, exponent=st.integers(-120, 120), seed=seeds, special=specials
)
@example(rows=65, cols=4096, n=2, exponent=0, seed=0, special=[(0, 4095, 1, np.inf)])
@example(rows=4096, cols=7, n=5, exponent=0, seed=0, special=[(1, 0, 7, 0.0), (4, 6, 1, np.nan)])
def test_products(
    kind: str,
    rows: int,
    cols: int,
    n: int,
    exponent: int,
    seed: int,
    special: list[tuple[int, int, int, float]],
) -> None:
    rows = min(rows, max(1, MACS // cols))
    n = min(n, max(1, MACS // (rows * cols)))
    tensor = scaled(KINDS[kind](rows, cols), exponent)
    x = activations(n, cols, seed, special)
    expected = matmul(ops_of(*KERNELS[0], 1), tensor, x)
    row, t = seed % rows, seed % n
    assert bits(expected[t, row]) == bits(np.float32(oracle_row(tensor, row, x[t])))
    for (isa, kernel), threads in itertools.product(KERNELS, (1, 2 + seed % 7)):
        assert_same_bits(matmul(ops_of(isa, kernel, threads), tensor, x), expected)
        if threads > 1:
            continue
        for one in {0, t, n - 1}:
            alone = matmul(ops_of(isa, kernel, 1), tensor, x[one : one + 1])
            assert_same_bits(alone[0], expected[one])


def attended(
    ops: NativeOps,
    shape: operations.Heads,
    half: bool,
    tables: tuple[np.ndarray, np.ndarray],
    parts: list[np.ndarray],
) -> np.ndarray:
    """Rotation and attention of ``parts``, one after the other, by an empty cache."""
    cos, sin = (ops.wrap(table) for table in tables)
    cache = operations.Paged(ops, shape, np.float16 if half else np.float32)
    position, outs = 0, []
    for part in parts:
        x = ops.wrap(part.copy())
        out = ops.buffer((len(part), shape.n_heads * shape.head_dim))
        operations.rope(ops, x, cos, sin, cache, len(part), position)
        operations.attention(ops, x, cache, out, len(part), position)
        outs.append(out.array)
        position += len(part)
    return np.concatenate(outs)


@few
@given(
    head_dim=st.sampled_from((2, 14, 64, 66, 128)),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from((1, 3, 4, 5, 9)),
    n=st.sampled_from((1, 2, 7, 63, 65)),
    position=st.sampled_from((0, 1, 31, 100)),
    half=st.booleans(),
    seed=seeds,
    special=specials,
)
def test_attention(
    head_dim: int,
    kv_heads: int,
    group: int,
    n: int,
    position: int,
    half: bool,
    seed: int,
    special: list[tuple[int, int, int, float]],
) -> None:
    """Queries of a prompt together and one by one; rotation and the cache are part of it."""
    shape = operations.Heads(kv_heads * group, kv_heads, head_dim, position + n)
    width = (shape.n_heads + 2 * kv_heads) * head_dim
    before = activations(position + n, width, seed, [])
    qkv = activations(n, width, seed, special) / np.float32(1e3)
    angles = random(seed).uniform(0, 6, (shape.capacity, head_dim // 2))
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first = [before[:position]] if position else []
    together, apart = [*first, qkv], [*first, *(qkv[t : t + 1] for t in range(n))]
    results = []
    for isa, threads in itertools.product(ISAS, (1, 2 + seed % 7)):
        ops = ops_of(isa, "lookup", threads)
        results += [attended(ops, shape, half, tables, parts) for parts in (together, apart)]
    for other in results[1:]:
        assert_same_bits(other, results[0])


@few
@given(size=sizes, n=st.sampled_from((1, 2, 65)), seed=seeds, special=specials)
def test_norm_and_gate(
    size: int, n: int, seed: int, special: list[tuple[int, int, int, float]]
) -> None:
    x = activations(n, 2 * size, seed, special)
    weight = aligned_zeros((size,), np.float32)
    weight[...] = random(seed).standard_normal(size)
    results = []
    for isa, threads in itertools.product(ISAS, (1, 2 + seed % 7)):
        ops = ops_of(isa, "lookup", threads)
        gated, normed = ops.buffer((n, size)), ops.buffer((n, size))
        operations.gate(ops, ACTIVATIONS[seed % len(ACTIVATIONS)], ops.wrap(x), gated, n)
        half = ops.wrap(np.ascontiguousarray(x[:, :size]))
        operations.rmsnorm(ops, half, ops.wrap(weight), normed, n, 1e-5)
        centered = ops.buffer((n, size))
        operations.layernorm(ops, half, ops.wrap(weight), ops.wrap(weight), centered, n, 1e-5)
        results.append(np.stack([gated.array, normed.array, centered.array]))
    for other in results[1:]:
        assert_same_bits(other, results[0])
