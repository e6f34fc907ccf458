"""The C library: bits against an exact oracle, and the same bits on every instruction set."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest

from edgedb.errors import NativeError
from edgedb.ops import AttentionShape, native
from edgedb.ops.buffer import aligned_zeros
from edgedb.tensors import DenseTensor, Int8Tensor, LinearTensor, PairTensor

if not native.available()[0]:
    pytest.skip(native.available()[1], allow_module_level=True)

from edgedb._native import ffi, lib

ISAS = [name for name, _, runs in native.instruction_sets() if runs]
THREADS = (1, 2, 3)
SIZES = (1, 7, 63, 64, 65, 172, 200)
TOKENS = (1, 2, 3, 5, 17, 130)
EVERYWHERE = list(itertools.product(ISAS, THREADS))


@functools.cache
def ops_of(isa: str = ISAS[0], threads: int = 1) -> native.NativeOps:
    return native.NativeOps(isa, threads)


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def pair_tensor(rows: int, cols: int, pairs: int, seed: int = 1) -> PairTensor:
    """Random bytes, padding included: nothing beyond the matrix may reach a result."""
    rng, tiles, groups = random(seed), -(-rows // 64), -(-cols // 64)
    blocks = aligned_zeros((pairs, tiles, groups, 1152), np.uint8)
    blocks[...] = rng.integers(0, 256, blocks.shape, np.uint8)
    c1 = rng.integers(-127, 128, (pairs, tiles, groups, 64))
    c2 = rng.integers(np.maximum(-127, -127 - c1), np.minimum(127, 127 - c1) + 1)
    blocks[..., 1024:1088] = c1.astype(np.int8).view(np.uint8)
    blocks[..., 1088:] = c2.astype(np.int8).view(np.uint8)
    return PairTensor(blocks, rng.standard_normal((pairs, rows), np.float32), rows, cols)


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
    ops: native.NativeOps, tensor: LinearTensor, x: np.ndarray, base: np.ndarray | None = None
) -> np.ndarray:
    out = ops.buffer((len(x), tensor.rows))
    if base is not None:
        out.array[...] = base
    ops.matmul(ops.matrix(tensor), ops.wrap(x), out, len(x), add=base is not None)
    return out.array


def oracle_row(tensor: LinearTensor, row: int, x: np.ndarray) -> float:
    if isinstance(tensor, PairTensor):
        return oracle.pairs_row(tensor.blocks, tensor.row_scale, row, tensor.cols, x)
    if isinstance(tensor, Int8Tensor):
        return oracle.int8_row(tensor.codes, tensor.scales, row, tensor.cols, x)
    return oracle.dot(tensor.weight[row].astype(np.float32), x)


def bits(array: np.ndarray) -> np.ndarray:
    """float32 as integers; every NaN is the same NaN."""
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(np.float32).view(np.uint32)


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(bits(a), bits(b))


# ---- instruction sets and threads ----


def test_scalar_is_always_there_and_last() -> None:
    sets = native.instruction_sets()
    assert sets[-1][0] == "scalar" and sets[-1][2]
    assert native.NativeOps().isa == ISAS[0]
    assert native.NativeOps().threads >= 1


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
        native.NativeOps("z80")
    with pytest.raises(NativeError):
        native.NativeOps(threads=257)
    with pytest.raises(NativeError):
        native.NativeOps(threads=-1)


# ---- matrix products ----


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
@pytest.mark.parametrize("kind", ["2 pairs", "int8"])
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
            ops_of(isa)._context,
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
                for p, scale in enumerate(tensor.row_scale[:, row]):
                    value = oracle.mul(scale, oracle.pair_level(tensor.blocks[p], row, c))
                    expected[t, c] = oracle.add(expected[t, c], value)
            elif isinstance(tensor, Int8Tensor):
                scale = tensor.scales[row // 64, c // 64, row % 64]
                expected[t, c] = oracle.mul(scale, oracle.int8_code(tensor.codes, row, c))
            else:
                expected[t, c] = tensor.weight[row, c]
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((4, 172))
        ops.embed(ops.matrix(tensor), ops.wrap(ids), out, 4)
        np.testing.assert_array_equal(out.array, expected)


def test_every_float16_converts_exactly() -> None:
    weight = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    ids = np.arange(256, dtype=np.int32)
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((256, 256))
        ops.embed(ops.matrix(DenseTensor(weight)), ops.wrap(ids), out, 256)
        assert_same_bits(out.array, weight.astype(np.float32))


# ---- the rest of a layer ----


def test_rmsnorm_has_the_bits_of_the_oracle() -> None:
    for d, n in itertools.product((1, 7, 16, 172, 576), (1, 40)):
        x, weight = activations(n, d), activations(1, d, seed=5)[0]
        for isa, threads in EVERYWHERE:
            ops = ops_of(isa, threads)
            out = ops.buffer((n, d))
            ops.rmsnorm(ops.wrap(x), ops.wrap(weight), out, n, 1e-5)
            expected = np.array(oracle.rmsnorm(x[-1], weight, 1e-5), np.float32)
            assert_same_bits(out.array[-1], expected)


def test_swiglu_is_accurate_and_the_same_everywhere() -> None:
    f = 700
    gate_up = np.empty((30, 2 * f), np.float32)
    gate_up[:, :f] = np.linspace(-86, 87, 30 * f).reshape(30, f)
    gate_up[:, f:] = activations(30, f)
    gate, up = gate_up[:, :f].astype(np.float64), gate_up[:, f:].astype(np.float64)
    expected = gate / (1 + np.exp(-gate)) * up
    results = []
    for isa, threads in EVERYWHERE:
        ops = ops_of(isa, threads)
        out = ops.buffer((30, f))
        ops.swiglu(ops.wrap(gate_up), out, 30)
        np.testing.assert_allclose(out.array, expected, rtol=4e-7)
        results.append(out.array)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_swiglu_of_extreme_gates() -> None:
    gate_up = np.ones((1, 10), np.float32)
    gate_up[0, :5] = [np.nan, 1e30, -1e3, 0.0, 100.0]
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((1, 5))
        ops.swiglu(ops.wrap(gate_up), out, 1)
        assert np.isnan(out.array[0, 0])
        assert out.array[0, 1] == np.float32(1e30) and out.array[0, 4] == 100
        assert abs(out.array[0, 2]) < 1e-30 and out.array[0, 3] == 0


HEADS = [(4, 2, 18), (9, 3, 64), (6, 1, 8), (3, 3, 50), (1, 1, 2), (8, 2, 128), (5, 1, 34)]


class Layer:
    """Caches and rotary tables of one layer, filled with a prompt."""

    def __init__(self, heads: tuple[int, int, int], dtype: Any, capacity: int = 80) -> None:
        self.shape = AttentionShape(*heads, capacity)
        n_heads, n_kv, dim = heads
        angles = np.arange(capacity)[:, None] / 100.0 ** (np.arange(dim // 2) / (dim // 2))
        self.cos, self.sin = np.cos(angles).astype("f"), np.sin(angles).astype("f")
        self.dtype, self.width = dtype, (n_heads + 2 * n_kv) * dim
        self.out_width = n_heads * dim

    def run(
        self, ops: native.NativeOps, qkv: np.ndarray, steps: list[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Attention outputs with the prompt cut into ``steps`` tokens, and the caches."""
        shape = (self.shape.n_kv_heads, self.shape.capacity, self.shape.head_dim)
        k, v = ops.buffer(shape, self.dtype), ops.buffer(shape, self.dtype)
        cos, sin = ops.wrap(self.cos), ops.wrap(self.sin)
        outs, position = [], 0
        for n in steps:
            chunk = ops.wrap(qkv[position : position + n].copy())
            out = ops.buffer((n, self.out_width))
            ops.rope(chunk, cos, sin, k, v, n, position, self.shape)
            ops.attention(chunk, k, v, out, n, position, self.shape)
            outs.append(out.array)
            position += n
        return np.concatenate(outs), k.array, v.array

    def expected(self, qkv: np.ndarray) -> np.ndarray:
        """The same in float64, apart from the cache's rounding."""
        n_heads, n_kv, dim = self.shape.n_heads, self.shape.n_kv_heads, self.shape.head_dim
        n = len(qkv)
        heads = qkv.astype(np.float64).reshape(n, n_heads + 2 * n_kv, dim)
        first, second = (
            heads[:, : n_heads + n_kv, : dim // 2],
            heads[:, : n_heads + n_kv, dim // 2 :],
        )
        cos, sin = self.cos[:n, None], self.sin[:n, None]
        rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)
        k = rotated[:, n_heads:].astype(np.float32).astype(self.dtype).astype(np.float64)
        v = heads[:, n_heads + n_kv :].astype(self.dtype).astype(np.float64)
        out = np.empty((n, n_heads, dim))
        for t, h in itertools.product(range(n), range(n_heads)):
            kv = h // (n_heads // n_kv)
            scores = k[: t + 1, kv] @ rotated[t, h] / np.sqrt(dim)
            p = np.exp(scores - scores.max())
            out[t, h] = p @ v[: t + 1, kv] / p.sum()
        return out.reshape(n, -1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("heads", HEADS)
def test_attention(heads: tuple[int, int, int], dtype: Any) -> None:
    layer = Layer(heads, dtype)
    n = 37
    qkv = random(7).standard_normal((n, layer.width), np.float32)
    first, k_cache, v_cache = layer.run(ops_of(), qkv, [n])
    # A float16 key may round the other way where float64 and float32 rotation differ.
    tolerance = 2e-3 if dtype == np.float16 else 2e-5
    np.testing.assert_allclose(first, layer.expected(qkv), rtol=0, atol=tolerance)
    for isa, threads in EVERYWHERE:
        for steps in ([n], [1] * n, [5, 17, 15], [36, 1]):
            out, k, v = layer.run(ops_of(isa, threads), qkv, steps)
            assert_same_bits(out, first)
            np.testing.assert_array_equal(k, k_cache)
            np.testing.assert_array_equal(v, v_cache)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_later_token_never_reaches_an_earlier_one(bad: float) -> None:
    layer = Layer((6, 2, 18), np.float32)
    qkv = random(8).standard_normal((9, layer.width), np.float32)
    clean, _, _ = layer.run(ops_of(), qkv, [9])
    qkv[5] = bad
    for isa in ISAS:
        out, _, _ = layer.run(ops_of(isa), qkv, [9])
        assert_same_bits(out[:5], clean[:5])
        assert np.isnan(out[5:]).all()


def test_long_attention_is_shared_between_threads() -> None:
    layer = Layer((6, 2, 32), np.float16, capacity=600)
    qkv = random(9).standard_normal((590, layer.width), np.float32)
    expected, _, _ = layer.run(ops_of(ISAS[0], 1), qkv, [590])
    for isa, threads in EVERYWHERE:
        out, _, _ = layer.run(ops_of(isa, threads), qkv, [300, 289, 1])
        assert_same_bits(out, expected)


# ---- threads and processes ----


def test_threads_share_one_context() -> None:
    ops = native.NativeOps(threads=2)
    tensor = pair_tensor(700, 300, 2)
    matrix = ops.matrix(tensor)
    inputs = [activations(n, 300, seed=n) for n in (1, 2, 9, 40)]
    expected = [matmul(ops_of(), tensor, x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        x, out = ops.wrap(inputs[index]), ops.buffer((len(inputs[index]), 700))
        for _ in range(60):
            out.array[...] = 0
            ops.matmul(matrix, x, out, len(inputs[index]))
            if not np.array_equal(bits(out.array), bits(expected[index])):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pool_sleeps_and_wakes() -> None:
    ops = native.NativeOps(threads=3)
    tensor, x = pair_tensor(640, 128, 1), activations(1, 128)
    expected = matmul(ops_of(), tensor, x)
    for pause in (0, 0.00002, 0.0001, 0.002) * 20:
        time.sleep(pause)
        assert_same_bits(matmul(ops, tensor, x), expected)


def test_idle_pool_uses_no_cpu() -> None:
    ops = native.NativeOps(threads=3)
    matmul(ops, pair_tensor(640, 128, 1), activations(1, 128))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_fork_computes_the_same() -> None:
    ops = native.NativeOps(threads=3)
    tensor, x = pair_tensor(640, 128, 1), activations(4, 128)
    expected = matmul(ops, tensor, x)
    old_context, old_pool = ops._context, ops._pool
    child = os.fork()
    if child == 0:
        try:
            same = np.array_equal(bits(matmul(ops, tensor, x)), bits(expected))
            new_pool = ops._pool is not old_pool
            ops._context = old_context  # whose threads are the parent's
            same &= np.array_equal(bits(matmul(ops, tensor, x)), bits(expected))
            os._exit(0 if same and new_pool else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done and status == 0
    assert_same_bits(matmul(ops, tensor, x), expected)


# ---- bad arguments: a status, never a crash ----


@pytest.fixture
def call() -> Iterator[SimpleNamespace]:
    """Valid arguments of a small matrix product and attention, to spoil one at a time."""
    ops = ops_of()
    tensor = pair_tensor(65, 70, 2)
    shape = ffi.new("edb_attention_shape *", [4, 2, 8, lib.EDB_F16, 10])
    keep = {name: ops.buffer((4096,)) for name in ("x", "out", "cos", "sin", "k", "v", "scratch")}
    yield SimpleNamespace(
        ctx=ops._context,
        matrix=ops.matrix(tensor).struct,
        tensor=tensor,
        shape=shape,
        ids=ops.buffer((4,), np.int32),
        keep=keep,
        **{name: buffer.ptr for name, buffer in keep.items()},
    )


def matmul_status(c: SimpleNamespace, n: int = 1, scratch_bytes: int = 16384) -> int:
    return int(lib.edb_matmul(c.ctx, c.matrix, c.x, c.out, n, 0, c.scratch, scratch_bytes))


def attention_status(c: SimpleNamespace, n: int = 1, pos: int = 0, size: int = 16384) -> int:
    args = (c.ctx, c.shape, c.x, c.k, c.v, c.out, n, pos, c.scratch, size)
    return int(lib.edb_attention(*args))


def rope_status(c: SimpleNamespace, n: int = 1, pos: int = 0) -> int:
    return int(lib.edb_rope(c.ctx, c.shape, c.x, c.cos, c.sin, c.k, c.v, n, pos))


def test_matmul_refuses_bad_arguments(call: SimpleNamespace) -> None:
    assert matmul_status(call) == lib.EDB_OK
    assert matmul_status(call, n=0) == lib.EDB_ERR_SHAPE
    assert matmul_status(call, n=-1) == lib.EDB_ERR_SHAPE
    assert matmul_status(call, n=1 << 62) == lib.EDB_ERR_SHAPE
    needed = lib.edb_matmul_scratch_bytes(call.ctx, call.matrix, 3)
    assert needed > 0
    assert matmul_status(call, n=3, scratch_bytes=needed - 1) == lib.EDB_ERR_SCRATCH
    for name in ("ctx", "matrix", "x", "out", "scratch"):
        spoiled = SimpleNamespace(**{**vars(call), name: ffi.NULL})
        assert matmul_status(spoiled) == lib.EDB_ERR_NULL, name
    one_byte_on = ffi.cast("float *", ffi.cast("char *", call.x) + 1)
    assert matmul_status(SimpleNamespace(**{**vars(call), "x": one_byte_on})) == lib.EDB_ERR_ALIGN


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("rows", 0, "SHAPE"),
        ("rows", -5, "SHAPE"),
        ("rows", 1 << 62, "SHAPE"),
        ("cols", 0, "SHAPE"),
        ("cols", -(1 << 63), "SHAPE"),
        ("cols", (1 << 63) - 1, "SHAPE"),
        ("pairs", 0, "SHAPE"),
        ("pairs", -1, "SHAPE"),
        ("pairs", 9, "SHAPE"),
        ("kind", 0, "KIND"),
        ("kind", 99, "KIND"),
        ("data", ffi.NULL, "NULL"),
        ("scales", ffi.NULL, "NULL"),
    ],
)
def test_matrix_fields_are_checked(
    call: SimpleNamespace, field: str, value: Any, status: str
) -> None:
    setattr(call.matrix, field, value)
    expected = getattr(lib, f"EDB_ERR_{status}")
    assert matmul_status(call) == expected
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 1) == expected
    assert lib.edb_matmul_scratch_bytes(call.ctx, call.matrix, 1) == 0


def test_misaligned_weights_are_refused(call: SimpleNamespace) -> None:
    call.matrix.data = ffi.cast("char *", call.matrix.data) + 32
    assert matmul_status(call) == lib.EDB_ERR_ALIGN


@pytest.mark.parametrize("token", [-1, 65, (1 << 31) - 1, -(1 << 31)])
def test_embed_refuses_ids_that_are_no_rows(call: SimpleNamespace, token: int) -> None:
    call.ids.array[1] = token
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 1) == lib.EDB_OK
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 2) == lib.EDB_ERR_RANGE


def test_attention_refuses_bad_arguments(call: SimpleNamespace) -> None:
    assert rope_status(call) == attention_status(call) == lib.EDB_OK
    for status in (rope_status, attention_status):
        assert status(call, n=10) == lib.EDB_OK
        assert status(call, n=0) == status(call, n=-1) == lib.EDB_ERR_SHAPE
        assert status(call, n=11) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=10) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=-1) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=(1 << 63) - 1) == lib.EDB_ERR_RANGE
        for name in ("ctx", "shape", "x", "k", "v"):
            spoiled = SimpleNamespace(**{**vars(call), name: ffi.NULL})
            assert status(spoiled) == lib.EDB_ERR_NULL, name
    needed = lib.edb_attention_scratch_bytes(call.ctx, call.shape, 10)
    assert needed > 0 and attention_status(call, n=10, size=needed - 1) == lib.EDB_ERR_SCRATCH
    assert lib.edb_attention_scratch_bytes(call.ctx, call.shape, 11) == 0


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("n_heads", 3, "SHAPE"),
        ("n_heads", 0, "SHAPE"),
        ("n_heads", -2, "SHAPE"),
        ("n_heads", 1 << 30, "SHAPE"),
        ("n_kv_heads", 0, "SHAPE"),
        ("n_kv_heads", -1, "SHAPE"),
        ("head_dim", 7, "SHAPE"),
        ("head_dim", 0, "SHAPE"),
        ("head_dim", 1026, "SHAPE"),
        ("capacity", 0, "SHAPE"),
        ("capacity", 1 << 62, "SHAPE"),
        ("cache_kind", 1, "KIND"),
    ],
)
def test_attention_shapes_are_checked(
    call: SimpleNamespace, field: str, value: int, status: str
) -> None:
    setattr(call.shape, field, value)
    expected = getattr(lib, f"EDB_ERR_{status}")
    assert rope_status(call) == attention_status(call) == expected


def test_other_operations_refuse_bad_arguments(call: SimpleNamespace) -> None:
    c, null = call, ffi.NULL
    assert lib.edb_rmsnorm(c.ctx, c.x, c.k, c.out, 1, 8, 1e-5) == lib.EDB_OK
    assert lib.edb_rmsnorm(c.ctx, null, c.k, c.out, 1, 8, 1e-5) == lib.EDB_ERR_NULL
    assert lib.edb_rmsnorm(c.ctx, c.x, c.k, c.out, -1, 8, 1e-5) == lib.EDB_ERR_SHAPE
    assert lib.edb_rmsnorm(c.ctx, c.x, c.k, c.out, 1, 1 << 40, 1e-5) == lib.EDB_ERR_SHAPE
    assert lib.edb_swiglu(c.ctx, c.x, c.out, 1, 0) == lib.EDB_ERR_SHAPE
    assert lib.edb_swiglu(null, c.x, c.out, 1, 8) == lib.EDB_ERR_NULL
    q = ffi.new("int8_t[64]")
    assert lib.edb_quantize(c.ctx, c.x, q, c.out, 1, 64) == lib.EDB_OK
    assert lib.edb_quantize(c.ctx, c.x, null, c.out, 1, 64) == lib.EDB_ERR_NULL
    assert lib.edb_quantize(c.ctx, c.x, q, c.out, 0, 64) == lib.EDB_ERR_SHAPE
    assert lib.edb_pool_create(1, null) == lib.EDB_ERR_NULL
    pool = ffi.new("edb_pool **")
    assert lib.edb_pool_create(0, pool) == lib.EDB_ERR_SHAPE and pool[0] == null
    context = ffi.new("edb_context **")
    assert lib.edb_context_create(b"avx9000", null, context) == lib.EDB_ERR_ISA
    assert lib.edb_context_create(null, null, null) == lib.EDB_ERR_NULL
    assert lib.edb_isa_name(-1) == lib.edb_isa_description(99) == null
    assert lib.edb_isa_supported(99) == 0 and lib.edb_context_isa(null) == null
    lib.edb_pool_destroy(null)
    lib.edb_context_destroy(null)


def test_every_status_has_a_text() -> None:
    texts = [ffi.string(lib.edb_status_text(status)) for status in range(10)]
    assert len(set(texts)) == 10
    assert ffi.string(lib.edb_status_text(1234)) == b"unknown status"


def test_shapes_that_disagree_are_refused() -> None:
    ops = ops_of()
    matrix = ops.matrix(pair_tensor(65, 70, 1))
    with pytest.raises(NativeError, match="65 x 70 matrix, x has 71 columns"):
        ops.matmul(matrix, ops.buffer((1, 71)), ops.buffer((1, 65)), 1)
    with pytest.raises(NativeError, match="a size is zero, negative"):
        ops.matmul(matrix, ops.buffer((1, 70)), ops.buffer((1, 65)), 0)
    with pytest.raises(NativeError, match="weights"):
        ops.matrix(PairTensor(np.zeros((1, 1, 1, 1152), np.uint8), np.ones((1, 65), "f"), 65, 70))
    with pytest.raises(NativeError, match="not C-contiguous"):
        ops.wrap(np.zeros((4, 4), np.float32)[:, ::2])
