"""The C library's matrix products: bits against an exact oracle, on every instruction set."""

from __future__ import annotations

import itertools
import time

import numpy as np
import operations
import oracle
import pytest
from kernels import (
    EVERYWHERE,
    ISAS,
    KINDS,
    activations,
    assert_same_bits,
    bits,
    int8_tensor,
    matmul,
    ops_of,
    oracle_row,
    pair_tensor,
    random,
)

from edgedb.errors import NativeError
from edgedb.format.tensors import DenseTensor, Int8Tensor, LinearTensor, PairTensor
from edgedb.ops import library
from edgedb.ops.library import ffi, lib
from edgedb.ops.native import NativeOps

SIZES = (1, 7, 63, 64, 65, 172, 200)
TOKENS = (1, 2, 3, 5, 17, 130)


def test_scalar_is_always_there_and_last() -> None:
    sets = library.instruction_sets()
    assert sets[-1][0] == "scalar" and sets[-1][2]
    assert NativeOps().isa == ISAS[0]
    assert NativeOps().threads >= 1


@pytest.mark.parametrize("isa", ISAS)
def test_forced_instruction_set_is_the_one_that_runs(isa: str) -> None:
    assert ops_of(isa).isa == isa
    if isa == "scalar":
        return
    # A name proves little: vector kernels are ten times faster than the scalar ones.
    tensor, x = pair_tensor(512, 512, 1), activations(1, 512)

    def seconds(name: str) -> float:
        ops = ops_of(name)
        matrix, buffer, out = ops.matrix(tensor), ops.wrap(x), ops.buffer((1, 512))
        times = []
        for _ in range(20):
            start = time.perf_counter()
            ops.matmul(matrix, buffer, out, 1)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(isa) < seconds("scalar") / 2


def test_unknown_instruction_set_and_bad_thread_counts_are_refused() -> None:
    with pytest.raises(NativeError, match=r"'z80' cannot run here; this CPU runs .*scalar"):
        NativeOps("z80")
    with pytest.raises(NativeError):
        NativeOps(threads=257)
    with pytest.raises(NativeError):
        NativeOps(threads=-1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 63), (64, 64), (65, 172), (130, 65)])
def test_matmul_has_the_bits_of_the_oracle(isa: str, kind: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    tensor = KINDS[kind](rows, cols)
    x = activations(5, cols)
    y = matmul(ops_of(isa), tensor, x)
    for t, row in itertools.product((0, 4), {0, rows // 2, rows - 1}):
        assert bits(y[t, row]) == bits(np.float32(oracle_row(tensor, row, x[t]))), (t, row)


@pytest.mark.parametrize("kind", KINDS)
def test_matmul_is_the_same_everywhere(kind: str) -> None:
    for rows, cols in itertools.product(SIZES, (1, 63, 65, 200)):
        tensor = KINDS[kind](rows, cols)
        for n in TOKENS:
            x = activations(n, cols)
            expected = matmul(ops_of(), tensor, x)
            for isa, threads in EVERYWHERE:
                assert_same_bits(matmul(ops_of(isa, threads), tensor, x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_equals_token_by_token(kind: str) -> None:
    tensor, x = KINDS[kind](172, 200), activations(261, 200)
    for isa in ISAS:
        ops = ops_of(isa, 2)
        together = matmul(ops, tensor, x)
        alone = np.concatenate([matmul(ops, tensor, x[t : t + 1]) for t in range(len(x))])
        assert_same_bits(together, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_is_one_addition(kind: str) -> None:
    tensor = KINDS[kind](65, 172)
    for isa, n in itertools.product(ISAS, (1, 5, 70)):
        x, base = activations(n, 172), activations(n, 65, seed=3)
        y = matmul(ops_of(isa, 2), tensor, x)
        assert_same_bits(matmul(ops_of(isa, 2), tensor, x, base), base + y)


SPECIAL = {
    "zero": 0.0,
    "nan": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
    "subnormal": 1e-40,
    "scale below the smallest normal": 1.4e-36,
    "scale at the smallest normal": 127 * 2.0**-126,
    "largest": np.finfo(np.float32).max,
}


@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("kind", ["1.5 pairs", "2 pairs", "int8"])
def test_special_groups(kind: str, value: float) -> None:
    tensor, x = KINDS[kind](65, 172), activations(5, 172)
    x[1, 64:128] = 0
    x[1, 70] = value
    x[2] = value
    expected = [[oracle_row(tensor, row, x[t]) for row in (0, 64)] for t in (1, 2)]
    for isa, threads in EVERYWHERE:
        y = matmul(ops_of(isa, threads), tensor, x)
        assert_same_bits(y[1:3][:, [0, 64]], np.array(expected, np.float32))
        assert np.isfinite(y[[0, 3, 4]]).all()
        if not np.isfinite(value):
            assert np.isnan(y[1:3]).all()


def test_largest_codes_and_activations_do_not_overflow() -> None:
    """Every partial sum at its bound: all bits set, codes and activations at 127."""
    for sign, kind in itertools.product((1, -1), ("pairs", "int8")):
        tensor: LinearTensor
        if kind == "pairs":
            tensor = pair_tensor(64, 128, 1)
            tensor.blocks[..., :1024] = 255
            tensor.blocks[..., 1024:1088] = np.uint8(127 * sign & 255)
            tensor.blocks[..., 1088:] = 0
        else:
            tensor = int8_tensor(64, 128)
            tensor.codes[...] = 127 * sign
        x = np.full((5, 128), 3.0, np.float32)
        x[1::2] *= -1
        for isa in ISAS:
            y = matmul(ops_of(isa), tensor, x)
            for t in range(5):
                assert bits(y[t, 9]) == bits(np.float32(oracle_row(tensor, 9, x[t])))


def test_unaligned_weights_are_copied() -> None:
    tensor = pair_tensor(65, 172, 1)
    raw = np.empty(tensor.blocks.nbytes + 65, np.uint8)
    offset = (1 - raw.ctypes.data) % 64  # one past a boundary
    shifted = raw[offset : offset + tensor.blocks.nbytes].reshape(tensor.blocks.shape)
    shifted[...] = tensor.blocks
    x = activations(1, 172)
    moved = PairTensor(shifted, tensor.row_scale, 65, 172)
    assert_same_bits(matmul(ops_of(), moved, x), matmul(ops_of(), tensor, x))


def test_quantize_rounds_half_to_even() -> None:
    x = np.zeros((1, 130), np.float32)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127]
    x[0, 64:128] = random(3).standard_normal(64)
    x[0, 128:] = [np.nextafter(np.float32(1), np.float32(2)), -1]
    expected_q, expected_sx = oracle.quantize(x[0])
    assert expected_q[0][:8] == [127, 0, 2, 2, 0, -2, 126, -127]
    for isa in ISAS:
        q, sx = np.empty((1, 192), np.int8), np.empty((1, 3), np.float32)
        status = lib.edb_quantize(
            ops_of(isa).context,
            ffi.cast("float *", ffi.from_buffer(x)),
            ffi.cast("int8_t *", ffi.from_buffer(q)),
            ffi.cast("float *", ffi.from_buffer(sx)),
            1,
            130,
        )
        assert status == lib.EDB_OK
        assert q.tolist() == [list(itertools.chain(*expected_q))]
        assert_same_bits(sx[0], np.array(expected_sx, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_embed_is_a_row_of_the_matrix(kind: str) -> None:
    tensor = KINDS[kind](130, 172)
    ids = np.array([0, 129, 64, 5], np.int32)
    expected = np.zeros((4, 172), np.float32)
    for t, row in enumerate(ids):
        for c in range(172):
            if isinstance(tensor, PairTensor):
                for blocks, scale in tensor.terms():
                    value = oracle.mul(scale[row], oracle.pair_level(blocks, row, c))
                    expected[t, c] = oracle.add(expected[t, c], value)
            elif isinstance(tensor, Int8Tensor):
                scale = tensor.scales[row // 64, c // 64, row % 64]
                expected[t, c] = oracle.mul(scale, oracle.int8_code(tensor.codes, row, c))
            else:
                expected[t, c] = tensor.weight[row, c]
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((4, 172))
        operations.embed(ops, ops.matrix(tensor), ops.wrap(ids), out, 4)
        np.testing.assert_array_equal(out.array, expected)


def test_every_float16_converts_exactly() -> None:
    weight = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    ids = np.arange(256, dtype=np.int32)
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((256, 256))
        operations.embed(ops, ops.matrix(DenseTensor(weight)), ops.wrap(ids), out, 256)
        assert_same_bits(out.array, weight.astype(np.float32))
