"""The choice between pair kernels: the exact ones agree in every bit, the coarse one as defined."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import oracle
import pytest
from kernels import (
    ISAS,
    activations,
    assert_same_bits,
    bits,
    int8_tensor,
    matmul,
    ops_of,
    oracle_row,
    pair_tensor,
)

from edgedb import ops as operations
from edgedb.errors import EdgeDBError, NativeError
from edgedb.ops import library
from edgedb.ops.native import NativeOps

KERNELS = [(isa, kernel) for isa in ISAS for kernel in library.kernels(isa)]
EXACT = [(isa, kernel) for isa, kernel in KERNELS if kernel != "popcount4"]
COARSE = [(isa, kernel) for isa, kernel in KERNELS if kernel == "popcount4"]


def test_scalar_has_every_kernel() -> None:
    assert library.kernels("scalar") == ["lookup", "popcount", "popcount4"]
    assert library.kernels("z80") == []
    assert library.kernels() == library.kernels(ISAS[0])


@pytest.mark.parametrize(("isa", "kernel"), KERNELS)
def test_forced_kernel_is_the_one_that_runs(
    isa: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDB_KERNEL", kernel)
    ops = operations.create(isa=isa, threads=1)
    assert (ops.name, ops.isa, ops.kernel) == ("native", isa, kernel)


def test_kernels_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NativeError, match="'abacus'; choose one of lookup, popcount"):
        NativeOps("scalar", kernel="abacus")
    monkeypatch.setenv("EDGEDB_KERNEL", "popcount")
    with pytest.raises(EdgeDBError, match="choice of the native backend, not of numpy"):
        operations.create("numpy")


@pytest.mark.parametrize(("isa", "kernel"), EXACT)
def test_exact_kernels_have_the_same_bits(isa: str, kernel: str) -> None:
    for shape in ((1, 1), (65, 63), (64, 64), (130, 200)):
        for pairs, n in itertools.product((1, 1.5, 3), (1, 2, 17)):
            tensor, x = pair_tensor(*shape, pairs), activations(n, shape[1])
            x[0, 0] = np.nan if shape[1] == 200 else x[0, 0]
            expected = matmul(ops_of(), tensor, x)
            for threads in (1, 2):
                y = matmul(NativeOps(isa, threads, kernel), tensor, x)
                assert_same_bits(y, expected)


@pytest.mark.parametrize("pairs", [1, 1.5, 2, None])
def test_any_number_of_tokens_has_the_bits_of_each_by_itself(pairs: float | None) -> None:
    """Few tokens go through a block together, in runs that depend on how many they are."""
    tensor = int8_tensor(70, 200) if pairs is None else pair_tensor(70, 200, pairs)
    x = activations(35, 200)
    x[5, 70] = np.nan
    expected = np.concatenate([matmul(ops_of("scalar"), tensor, row[None]) for row in x])
    for (isa, kernel), n in itertools.product(EXACT, [*range(1, 18), 24, 25, 33]):
        if isa != "scalar" and (pairs is not None or kernel == "lookup"):
            first = n % 3  # also the rows behind others
            assert_same_bits(
                matmul(NativeOps(isa, 1, kernel), tensor, x[first : n + first]),
                expected[first : n + first],
            )


@pytest.mark.parametrize("pairs", [1, 1.5, 2])
@pytest.mark.parametrize("cols", [4030, 4096, 4100])
def test_one_token_of_many_columns_has_the_bits_of_every_kernel(pairs: float, cols: int) -> None:
    """Its tables fill a first-level cache."""
    tensor, x = pair_tensor(70, cols, pairs), activations(1, cols)
    expected = matmul(ops_of("scalar"), tensor, x)
    for (isa, kernel), threads in itertools.product(EXACT, (1, 2)):
        assert_same_bits(matmul(NativeOps(isa, threads, kernel), tensor, x), expected)


@pytest.mark.parametrize(("isa", "kernel"), COARSE)
def test_coarse_kernels_round_activations_to_4_bits(
    isa: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the activations differ, for one token and for many, and int8 weights do not care."""
    ops, other = NativeOps(isa, 2, kernel), int8_tensor(65, 172)
    tensor, x = pair_tensor(65, 172, 1.5), activations(130, 172)
    x[7] = np.nan
    assert_same_bits(matmul(ops, other, x), matmul(ops_of(), other, x))
    y = matmul(ops, tensor, x)
    assert_same_bits(np.concatenate([matmul(ops, tensor, row[None]) for row in x]), y)
    coarsen_oracle(monkeypatch)
    for t, row in itertools.product((0, 7, 129), (0, 64)):
        assert bits(y[t, row]) == bits(np.float32(oracle_row(tensor, row, x[t])))


@pytest.mark.parametrize(("isa", "kernel"), KERNELS)
def test_counts_reach_their_bounds(isa: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bits set, against activations whose planes are as full as they can be."""
    tensor = pair_tensor(64, 64, 1.5)
    assert tensor.half is not None
    tensor.blocks[..., :1024] = tensor.half[..., :512] = 255
    tensor.blocks[..., 1024:1088] = tensor.half[..., 512:] = 127
    tensor.blocks[..., 1088:] = 0
    ops = NativeOps(isa, 1, kernel)
    if kernel == "popcount4":
        coarsen_oracle(monkeypatch)
    for value, other in ((127, 127), (-127, -127), (127, -1), (-127, -1), (127, -128 + 16)):
        x = np.full((1, 64), other, np.float32)
        x[0, 0] = value
        y = matmul(ops, tensor, x)
        assert bits(y[0, 63]) == bits(np.float32(oracle_row(tensor, 63, x[0])))


SIGNS = [(127, 0), (0, 127), (63, 64), (-64, -63), (-127, 0), (0, -127), (127, -127), (-127, 127)]


@pytest.mark.parametrize(("isa", "kernel"), EXACT)
def test_signs_of_codes_are_free(isa: str, kernel: str) -> None:
    """Codes at every corner of what the format takes, also both of one sign, at all four levels."""
    tensor, n = pair_tensor(64, 256, 1), 17
    for row in range(64):
        c1, c2 = SIGNS[row % len(SIGNS)]
        tensor.blocks[..., 1024 + row] = c1 & 255
        tensor.blocks[..., 1088 + row] = c2 & 255
    tensor.blocks[:, :, 2, :1024] = 255  # c1 + c2 everywhere
    x = activations(n, 256)
    x[3, 64:192] = np.where(np.arange(128) % 3, 5, -5)  # the largest sums
    x[4, 64:192] = -5
    for rows in (slice(0, 5), slice(0, n)):  # one by one, and expanded
        y = matmul(NativeOps(isa, 2, kernel), tensor, x[rows])
        for t, row in itertools.product((0, 3, 4), range(len(SIGNS))):
            assert bits(y[t, row]) == bits(np.float32(oracle_row(tensor, row, x[t]))), (t, row)


def coarsen_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize = oracle.quantize

    def coarse(x: np.ndarray) -> Any:
        q, sx = quantize(x)
        sized = [[(min((abs(v) + 8) // 16 * 16, 112), v) for v in group] for group in q]
        return [[size if v > 0 else -size for size, v in group] for group in sized], sx

    monkeypatch.setattr(oracle, "quantize", coarse)
