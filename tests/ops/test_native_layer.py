"""The C library's other operations: accurate, and the same bits everywhere."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import operations
import oracle
import pytest
from kernels import EVERYWHERE, ISAS, activations, assert_same_bits, ops_of, random

from edgedb.ops.native import NativeOps
from edgedb.ops.values import ACTIVATIONS


def test_rmsnorm_has_the_bits_of_the_oracle() -> None:
    for d, n in itertools.product((1, 7, 16, 172, 576), (1, 40)):
        x, weight = activations(n, d), activations(1, d, seed=5)[0]
        for isa, threads in EVERYWHERE:
            ops = ops_of(isa, threads)
            out = ops.buffer((n, d))
            operations.rmsnorm(ops, ops.wrap(x), ops.wrap(weight), out, n, 1e-5)
            expected = np.array(oracle.rmsnorm(x[-1], weight, 1e-5), np.float32)
            assert_same_bits(out.array[-1], expected)


@pytest.mark.parametrize("shifted", [True, False])
def test_layernorm_has_the_bits_of_the_oracle(shifted: bool) -> None:
    for d, n in itertools.product((1, 7, 16, 172, 576), (1, 40)):
        x, weight = activations(n, d) + np.float32(0.7), activations(1, d, seed=5)[0]
        shift = activations(1, d, seed=6)[0] if shifted else np.zeros(d, np.float32)
        expected = np.array(oracle.layernorm(x[-1], weight, shift, 1e-5), np.float32)
        for isa, threads in EVERYWHERE:
            ops = ops_of(isa, threads)
            out = ops.buffer((n, d))
            given = ops.wrap(shift) if shifted else None
            operations.layernorm(ops, ops.wrap(x), ops.wrap(weight), given, out, n, 1e-5)
            assert_same_bits(out.array[-1], expected)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda v: v / 2 * math.erfc(-v / math.sqrt(2)))(x)


GATES = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gate_is_accurate_and_the_same_everywhere(name: str) -> None:
    f = 700
    gate_up = np.empty((30, 2 * f), np.float32)
    gate_up[:, :f] = np.linspace(-86, 87, 30 * f).reshape(30, f)
    gate_up[:, f:] = activations(30, f)
    gate, up = gate_up[:, :f].astype(np.float64), gate_up[:, f:].astype(np.float64)
    expected = GATES[name](gate) * up
    # Far below zero, exp(-z) magnifies the rounding of z, and what is left is next to nothing.
    atol = 0 if name == "silu" else 4e-7 * np.abs(up).max()
    results = []
    for isa, threads in EVERYWHERE:
        ops = ops_of(isa, threads)
        out = ops.buffer((30, f))
        operations.gate(ops, name, ops.wrap(gate_up), out, 30)
        np.testing.assert_allclose(out.array, expected, rtol=4e-7, atol=atol)
        results.append(out.array)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gate_of_extremes(name: str) -> None:
    gate_up = np.ones((1, 10), np.float32)
    gate_up[0, :5] = [np.nan, 1e30, -1e3, 0.0, 100.0]
    for isa in ISAS:
        ops = ops_of(isa)
        out = ops.buffer((1, 5))
        operations.gate(ops, name, ops.wrap(gate_up), out, 1)
        assert np.isnan(out.array[0, 0])
        assert out.array[0, 1] == np.float32(1e30) and out.array[0, 4] == 100
        assert abs(out.array[0, 2]) < 1e-30 and out.array[0, 3] == 0


HEADS = [(4, 2, 18), (9, 3, 64), (6, 1, 8), (3, 3, 50), (1, 1, 2), (8, 2, 128), (5, 1, 34)]


class Layer:
    """Caches and rotary tables of one layer, filled with a prompt."""

    def __init__(self, heads: tuple[int, int, int], dtype: Any, capacity: int = 80) -> None:
        self.shape = operations.Heads(*heads, capacity)
        n_heads, n_kv, dim = heads
        angles = np.arange(capacity)[:, None] / 100.0 ** (np.arange(dim // 2) / (dim // 2))
        self.cos, self.sin = np.cos(angles).astype("f"), np.sin(angles).astype("f")
        self.dtype, self.width = dtype, (n_heads + 2 * n_kv) * dim
        self.out_width = n_heads * dim

    def run(
        self, ops: NativeOps, qkv: np.ndarray, steps: list[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Attention outputs with the prompt cut into ``steps`` tokens, and the caches."""
        cache = operations.Paged(ops, self.shape, self.dtype)
        cos, sin = ops.wrap(self.cos), ops.wrap(self.sin)
        outs, position = [], 0
        for n in steps:
            chunk = ops.wrap(qkv[position : position + n].copy())
            out = ops.buffer((n, self.out_width))
            operations.rope(ops, chunk, cos, sin, cache, n, position)
            operations.attention(ops, chunk, cache, out, n, position)
            outs.append(out.array)
            position += n
        return np.concatenate(outs), *cache.arrays

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
