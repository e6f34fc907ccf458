"""The numba backend: integers exactly as the reference, the rest within a stated bound."""

import os
import subprocess
import sys

import numpy as np
import pytest
from dbb_files import random_linear
from operations import Heads, Paged, walked_attention

from edgedb.format.tensors import DenseTensor
from edgedb.ops import create, jit_matmul
from edgedb.ops.activations import quantize
from edgedb.ops.jit import NumbaOps
from edgedb.ops.reference import ReferenceOps
from edgedb.ops.values import ACTIVATIONS

REFERENCE = ReferenceOps()
SHAPES = [(1, 1), (7, 63), (64, 64), (65, 172), (130, 576)]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def ops(request, monkeypatch):
    monkeypatch.setattr("edgedb.ops.jit.PARALLEL_BYTES", 0)
    return NumbaOps(request.param)


def multiply(ops, tensor, x, out=None):
    result = ops.buffer((len(x), tensor.rows))
    if out is not None:
        result.array[:] = out
    ops.matmul(ops.matrix(tensor), ops.wrap(x), result, len(x), out is not None)
    return result.array


@pytest.mark.parametrize("kind", [2, 3, 4, 6, "int8"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_packed_products_equal_the_reference(ops, kind, rows, cols):
    # The reference rounds a fused multiply-add twice, which changes one result in 2^29.
    rng = np.random.default_rng(cols)
    tensor = random_linear(kind, rows, cols, rng)
    x = rng.standard_normal((5, cols), np.float32) * np.float32(3)
    many = multiply(ops, tensor, x)
    np.testing.assert_array_equal(many, multiply(REFERENCE, tensor, x))
    for t in range(5):  # one by one is another kernel
        np.testing.assert_array_equal(multiply(ops, tensor, x[t : t + 1])[0], many[t])
    residual = rng.standard_normal((5, rows), np.float32)
    np.testing.assert_array_equal(multiply(ops, tensor, x, residual), residual + many)


def test_largest_values_do_not_overflow(ops):
    tensor = random_linear("int8", 64, 64)
    tensor.codes[:] = 127
    x = np.full((3, 64), 127, np.float32)
    expected = multiply(REFERENCE, tensor, x)
    np.testing.assert_array_equal(multiply(ops, tensor, x), expected)
    np.testing.assert_array_equal(multiply(ops, tensor, x[:1]), expected[:1])
    tensor = random_linear(2, 64, 64)
    tensor.blocks[:, :, :, :1024] = 255
    tensor.blocks[:, :, :, 1024:1088] = 127
    tensor.blocks[:, :, :, 1088:] = 129  # -127
    for x_all in (x, -x):
        expected = multiply(REFERENCE, tensor, x_all)
        np.testing.assert_array_equal(multiply(ops, tensor, x_all), expected)
        np.testing.assert_array_equal(multiply(ops, tensor, x_all[:1]), expected[:1])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_dense_products(ops, dtype, rows, cols):
    rng = np.random.default_rng(cols)
    tensor = random_linear(dtype, rows, cols, rng)
    x = rng.standard_normal((3, cols), np.float32)
    exact = x.astype(np.float64) @ tensor.weight.astype(np.float64).T
    bound = np.abs(x).astype(np.float64) @ np.abs(tensor.weight.astype(np.float64)).T
    found = multiply(ops, tensor, x)
    # cols / 16 fused steps and four additions, half a unit in the last place each.
    assert (np.abs(found - exact) <= bound * (cols / 16 + 5) * 2.0**-24).all()
    for t in range(3):
        np.testing.assert_array_equal(multiply(ops, tensor, x[t : t + 1])[0], found[t])


def test_dense_sums_in_sixteen_lanes(ops):
    # Lane 0 meets 2^24 first and loses the ones after it; the other lanes keep theirs.
    weight = np.ones((1, 64), np.float32)
    x = np.ones((1, 64), np.float32)
    x[0, 0] = 2.0**24
    found = multiply(ops, DenseTensor(weight), x)
    assert found[0, 0] == 2.0**24 + 60


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [2, 3, "int8", "float32"])
@pytest.mark.parametrize("n", [1, 4])
def test_bad_activations_give_nan(ops, kind, bad, n):
    x = np.ones((n, 100), np.float32)
    x[n - 1, 70] = bad
    found = multiply(ops, random_linear(kind, 70, 100), x)
    assert not np.isfinite(found[n - 1]).any()
    assert kind == "float32" or np.isnan(found[n - 1]).all()
    assert np.isfinite(found[: n - 1]).all()


def test_quantize_equals_the_reference():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 172), np.float32)
    x *= np.float32(10.0) ** rng.integers(-44, 38, (40, 1)).astype(np.float32)
    x[3, 5], x[4, 70], x[5, :64] = np.nan, np.inf, 0
    x[6, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]  # halves go to even
    x[7, :2] = [3.4e38, -3.4e38]
    q, sx = np.empty((40, 192), np.int16), np.empty((40, 3), np.float32)
    qf = np.empty((40, 192), np.float32)
    jit_matmul.quantize(x, 40, 172, q, qf, sx)
    expected_q, expected_sx = quantize(x)
    np.testing.assert_array_equal(q, expected_q.reshape(40, 192))
    np.testing.assert_array_equal(qf, q)
    np.testing.assert_array_equal(sx, expected_sx)


def test_float16_is_widened_exactly():
    ops = NumbaOps(1)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    weight = halves[np.isfinite(halves)].reshape(-1, 1)
    widened = multiply(ops, DenseTensor(weight), np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(widened[0], weight[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "position", "n"),
    [(1, 1, 2, 0, 1), (3, 1, 8, 5, 1), (8, 4, 8, 63, 2), (9, 3, 64, 0, 40), (4, 2, 64, 250, 17)],
)
def test_attention_and_rope(ops, dtype, heads, kv_heads, head_dim, position, n):
    shape = Heads(heads, kv_heads, head_dim, position + n + 3)
    rng = np.random.default_rng(n)
    angle = rng.standard_normal((shape.capacity, head_dim // 2), np.float32)
    qkv = rng.standard_normal((n, (heads + 2 * kv_heads) * head_dim), np.float32)
    caches = rng.standard_normal((2, kv_heads, shape.capacity, head_dim)).astype(dtype)
    results = []
    for backend in (ops, REFERENCE):
        cache = Paged(backend, shape, dtype)
        cache.fill(caches)
        q, out = walked_attention(backend, qkv, np.cos(angle), np.sin(angle), cache, position)
        results.append((q, cache.arrays, out))
    for found, expected in zip(*results, strict=True):
        tolerance = 2e-3 if found.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-5)


def test_small_operations(ops):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 172), np.float32)
    weight = rng.standard_normal(172, np.float32)
    gate = rng.standard_normal((9, 172), np.float32) * np.float32(30)
    gate[0, :2] = [-200, 200]  # e^200 is infinite in float32
    table = random_linear("int8", 70, 172)
    results = []
    for backend in (ops, REFERENCE):
        norm = backend.rms_norm(x, weight, 1e-5)
        gates = [backend.activate(name, gate) for name in ACTIVATIONS]
        rows = backend.embed(backend.matrix(table), np.arange(9, dtype=np.int32) * 7)
        results.append((norm, *gates, rows))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-30)


def test_layer_norm(ops):
    x, weight, shift = np.random.default_rng(0).standard_normal((3, 9, 172), np.float32)
    found, expected = (
        backend.layer_norm(x + 3, weight[0], shift[0], 1e-5) for backend in (ops, REFERENCE)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_create_finds_it():
    ops = create("numba", threads=1)
    assert (ops.name, ops.threads) == ("numba", 1)
    assert ops.isa.startswith("llvm-")
    assert NumbaOps(256).threads <= 256


def test_works_where_no_cache_can_be_written():
    script = (
        "from numba.core import caching\n"
        "caching.CompileResultCacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from edgedb.ops import jit_layers\n"
        "out = np.zeros((1, 4), np.float32)\n"
        "one = np.ones((1, 4), np.float32)\n"
        "jit_layers.rmsnorm(one, one[0], out, 1, 0.0)\n"
        "print(out.sum(), type(jit_layers.rmsnorm._cache).__name__)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["4.0", "NullCache"], done.stderr
