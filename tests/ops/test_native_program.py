"""A pass as one call of C: the same bits fused and unfused, on every instruction set, whoever else
is in the pass."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernels import EVERYWHERE, ISAS, KINDS, assert_same_bits, ops_of, random
from operations import Tables

from edgedb.errors import FormatError, NativeError
from edgedb.format.tensors import (
    DenseTensor,
    Experts,
    Int8Tensor,
    LinearTensor,
    PairTensor,
    Weight,
    linear_arrays,
)
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of
from edgedb.model.kvcache import KVCache
from edgedb.model.network import Network
from edgedb.ops.native import NativeOps
from edgedb.ops.native_program import NativeProgram
from edgedb.ops.program import Block, Program
from edgedb.ops.recorder import Recorder
from edgedb.ops.sequences import Span
from edgedb.ops.values import Growth, RopeTable, Value
from edgedb.ops.weights import Weights

CONFIG = ModelConfig("llama", 90, 72, 100, 6, 6, 2, 18, 512)
CAPACITY = 400
TABLE = RopeTable(tuple(0.3**i for i in range(9)))


def small(tensor: LinearTensor) -> LinearTensor:
    """The same with weights near 0.1: no activation of a random layer may become infinite."""
    if isinstance(tensor, PairTensor):
        return replace(tensor, row_scale=tensor.row_scale * np.float32(2**-10))
    if isinstance(tensor, Int8Tensor):
        return replace(tensor, scales=tensor.scales * np.float32(2**-10))
    tensor.weight[...] *= tensor.weight.dtype.type(0.1)
    return tensor


def experts_like(tensor: Weight, count: int) -> Experts:
    """As many of them, each scaled by something else."""
    found = []
    for array in linear_arrays(tensor):
        factors = np.linspace(0.5, 1.5, count).reshape(-1, *[1] * array.ndim)
        stacked = np.repeat(array[None], count, axis=0)
        found.append((stacked * factors).astype("f") if array.dtype == np.float32 else stacked)
    return Experts(tuple(found), tensor.rows, tensor.cols, tensor.kind)


def weights_of(program: Program) -> Weights:
    """Every kind of matrix in every place."""
    kinds = itertools.cycle(KINDS.values())
    linears: dict[str, Weight] = {}
    stacks = program.stacks()
    for name, shape in program.matrices().items():  # 7 kinds and 4 matrices a layer: all meet
        linears[name] = small(next(kinds)(*shape))
        if name in stacks:
            linears[name] = experts_like(linears[name], stacks[name])
    rng = random(4)
    vectors = {k: rng.uniform(0, 0.1, n).astype("f") for k, n in program.vectors().items()}
    return Weights(linears, vectors, {t: Tables(t, CAPACITY) for t in program.ropes()})


class Runner:
    """A program on one set of operations, fused or as it is recorded."""

    def __init__(self, program: Program, ops: NativeOps, *, fuse: bool) -> None:
        self.program, self.ops = program, ops
        self.bound = NativeProgram(ops, program, weights_of(program), fuse=fuse)
        self.state = self.bound.state()

    def cache(self, dtype: str = "float16") -> KVCache:
        return KVCache(self.program.attentions(), self.ops, CAPACITY, dtype)

    def read(self, tokens: list[list[int]], caches: list[KVCache]) -> np.ndarray:
        """Logits after every one of several sequences' next tokens, in one pass."""
        pairs = list(zip(caches, tokens, strict=True))
        for cache, part in pairs:
            cache.reserve(len(part))
        spans = [Span(cache, cache.length, len(part)) for cache, part in pairs]
        self.bound.read(self.state, list(itertools.chain(*tokens)), spans)
        for cache, part in pairs:
            cache.length += len(part)
        return self.bound.logits(self.state, 0, sum(map(len, tokens))).copy()

    def steps(self, steps: list[int], dtype: str = "float16") -> tuple[np.ndarray, list[Any]]:
        """Logits after every token, read in ``steps``, and what the caches hold."""
        cache = self.cache(dtype)
        tokens = [7 * t * t % 90 for t in range(sum(steps))]
        logits = []
        for n in steps:
            logits.append(self.read([tokens[cache.length : cache.length + n]], [cache]))
        return np.concatenate(logits), [filled.rows.copy() for filled in cache.filled()]


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("steps", [[1, 1, 2], [40, 1, 1], [128, 128, 30, 1, 5, 1]])
def test_a_model_fused_has_the_bits_of_its_operations(steps: list[int], dtype: str) -> None:
    program = program_of(CONFIG)
    expected, caches = Runner(program, ops_of(), fuse=False).steps(steps, dtype)
    for isa, threads in EVERYWHERE:
        got, got_caches = Runner(program, ops_of(isa, threads), fuse=True).steps(steps, dtype)
        assert_same_bits(got, expected)
        for a, b in zip(got_caches, caches, strict=True):
            np.testing.assert_array_equal(a, b)


# What families do, and what none does: each is a layer of width 36 over 2 heads of 18.
Layer = Callable[[Recorder, Value], Value]


def attend(m: Recorder, x: Value, **options: Any) -> Value:
    q, k, v = m.linear(x, "qkv", 108, bias=True).split(36, 36, 36)
    return m.attention(m.rope(q, 2, TABLE), m.rope(k, 2, TABLE), v, **options)


def norms_behind(m: Recorder, x: Value) -> Value:
    x = x + m.rms_norm(m.linear(attend(m, x), "out", 36), "norm")
    return x + m.rms_norm(m.linear(m.silu(m.linear(x, "up", 50)), "down", 36, bias=True), "norm2")


def parallel(m: Recorder, x: Value) -> Value:
    h = m.rms_norm(x, "norm")
    gate, up = m.linear(h, "gate_up", 60).split(30, 30)
    return x + m.linear(attend(m, h), "out", 36) + m.linear(up * m.silu(gate), "down", 36)


def head_norms_and_a_window(m: Recorder, x: Value) -> Value:
    q, k, v = m.linear(m.rms_norm(x, "norm"), "qkv", 108).split(36, 36, 36)
    q, k = m.rms_norm(q, "q_norm", heads=2), m.rms_norm(k, "k_norm", heads=2)
    return x + m.linear(
        m.attention(m.rope(q, 2, TABLE), m.rope(k, 2, TABLE), v, window=7), "out", 36
    )


def norms_over_all_heads(m: Recorder, x: Value) -> Value:
    q, k, v = m.linear(x, "qkv", 108).split(36, 36, 36)
    q, k = m.rope(m.rms_norm(q, "q_norm"), 2, TABLE), m.rope(m.rms_norm(k, "k_norm"), 2, TABLE)
    return m.linear(m.attention(q, k, v, scale=0.3, window=300), "out", 36) + x


def no_rope(m: Recorder, x: Value) -> Value:
    q, k, v = (m.linear(x, name, width) for name, width in (("q", 36), ("k", 18), ("v", 18)))
    return x + m.attention(q, k, v)


def queries_that_grow(m: Recorder, x: Value) -> Value:
    q, k, v = m.linear(x, "qkv", 108).split(36, 36, 36)
    growing = replace(TABLE, growth=Growth(0.3, 5))
    return x + m.linear(m.attention(m.rope(q, 2, growing), m.rope(k, 2, TABLE), v), "out", 36)


def caps(m: Recorder, x: Value) -> Value:
    x = x + m.linear(attend(m, x, cap=0.2, window=40), "out", 36)
    return x + m.softcap(m.linear(x, "up", 36), 0.3)


def queries_read_twice(m: Recorder, x: Value) -> Value:
    q, k, v = m.linear(x, "qkv", 108).split(36, 36, 36)
    seen = m.attention(m.rope(q, 2, TABLE), m.rope(k, 2, TABLE), v)
    return x + m.linear(q, "plain", 36) + m.linear(seen, "out", 36)


def the_stream_read_again(m: Recorder, x: Value) -> Value:
    y = x + m.linear(attend(m, m.rms_norm(x, "norm")), "out", 36)
    return m.rms_norm(x * y + m.linear(x, "again", 36), "last") + y


def layer_norms(m: Recorder, x: Value) -> Value:
    x = x + m.linear(attend(m, m.layer_norm(x, "norm")), "out", 36)
    h = m.layer_norm(m.linear(m.layer_norm(x, "norm2", bias=False), "up", 50), "norm3")
    return x + m.linear(m.layer_norm(h, "norm4", heads=2), "down", 36)


def gates_the_other_way(m: Recorder, x: Value) -> Value:
    up, gate = m.linear(attend(m, x), "up_gate", 80).split(40, 40)
    return x + m.linear(m.silu(gate) * up, "down", 36)


def gelu_gates(m: Recorder, x: Value) -> Value:
    gate, up = m.linear(attend(m, x), "gate_up", 70).split(35, 35)
    x = x + m.linear(m.gelu_tanh(gate) * up, "down", 36)
    return x + m.linear(m.gelu_tanh(m.linear(x, "up", 50)), "down2", 36)


def slopes(m: Recorder, x: Value) -> Value:
    q, k, v = (m.linear(x, name, width) for name, width in (("q", 36), ("k", 18), ("v", 18)))
    return x + m.attention(q, k, v, slopes=(0.5, 0.03))


def slopes_in_a_window(m: Recorder, x: Value) -> Value:
    return x + m.linear(attend(m, x, slopes=(0.25, 0.01), window=300), "out", 36)


def a_sum_of_a_sum(m: Recorder, x: Value) -> Value:
    """The last product is dense and has a bias (by its place among the kinds): only the first is
    added where x lies."""
    h = m.layer_norm(x, "norm")
    wide = m.linear(m.linear(h, "up", 50), "wide", 40)
    q, k, v = m.linear(h, "qkv", 108).split(36, 36, 36)
    y = x + m.linear(m.attention(q, k, v), "out", 36)
    return y + m.linear(wide, "down", 36, bias=True)


def no_gates(m: Recorder, x: Value) -> Value:
    up, plain = m.linear(attend(m, x), "up", 80).split(50, 30)
    x = x + m.linear(m.activation("gelu", up), "down", 36)  # of a slice: not fused
    h = m.activation("gelu", m.linear(x, "up2", 50, bias=True))
    x = x + m.linear(h, "down2", 36) + m.linear(m.activation("relu", plain), "down3", 36)
    return x + m.linear(m.activation("relu", m.linear(x, "up3", 50)), "down4", 36, bias=True)


def mixture(m: Recorder, x: Value) -> Value:
    x = x + m.linear(attend(m, x), "out", 36)
    h = m.rms_norm(x, "norm")
    route = m.route(m.linear(h, "router", 7), 3, normalized=True)
    gate, up = m.experts(h, route, "gate_up", 150, parts=2).split(225, 225)
    return x + m.mix(m.experts(m.silu(gate) * up, route, "down", 36, own=True), route)


def mixture_of_two_with_biases(m: Recorder, x: Value) -> Value:
    h = attend(m, x)
    route = m.route(m.linear(h, "router", 33, bias=True), 2, normalized=False)
    gate, up = m.experts(h, route, "up", 70, parts=2, bias=True).split(70, 70)
    gated = m.clamped_gate(gate, up, 1.7, 0.05)
    return m.mix(m.experts(gated, route, "down", 36, own=True, bias=True), route) + x


def sinks(m: Recorder, x: Value) -> Value:
    return x + m.linear(attend(m, x, sinks="sinks", window=40), "out", 36)


LAYERS = [
    norms_behind, parallel, head_norms_and_a_window, norms_over_all_heads, no_rope,
    queries_read_twice, the_stream_read_again, gates_the_other_way,
    layer_norms, gelu_gates, no_gates, queries_that_grow, mixture, mixture_of_two_with_biases,
    sinks, caps, slopes, slopes_in_a_window, a_sum_of_a_sum,
]  # fmt: skip


def program_with(layers: list[Layer]) -> Program:
    m = Recorder(1e-5, 18)
    x = m.input(36)
    return Program(
        Block(m.embed("embedding", 90, 36)),
        tuple(Block(layer(m, x)) for layer in layers),
        tuple(range(len(layers))),
        Block(m.rms_norm(x, "final_norm")),
        Block(m.linear(x, "head", 90)),
    )


@pytest.mark.parametrize("layer", [*LAYERS, None], ids=lambda f: f.__name__ if f else "all")
def test_every_pattern_fused_has_the_bits_of_its_operations(layer: Layer | None) -> None:
    program = program_with([layer] if layer else LAYERS)
    steps = [9, 1, 2, 128, 1] if layer else [128, 128, 70, 1]
    expected, caches = Runner(program, ops_of(), fuse=False).steps(steps)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 1e-4
    for isa, threads in EVERYWHERE:
        got, got_caches = Runner(program, ops_of(isa, threads), fuse=True).steps(steps)
        assert_same_bits(got, expected)
        for a, b in zip(got_caches, caches, strict=True):
            np.testing.assert_array_equal(a, b)
    one_by_one, _ = Runner(program, ops_of(ISAS[0], 2), fuse=True).steps([1] * sum(steps[:3]))
    assert_same_bits(one_by_one, expected[: len(one_by_one)])


def test_a_row_depends_on_its_own_sequence_alone() -> None:
    """Sequences of different lengths in one pass, at any position, against each by itself."""
    program = program_with(LAYERS)
    rng = random(3)
    texts = [rng.integers(0, 90, n).tolist() for n in (300, 40, 257, 1, 66)]
    for isa, threads in EVERYWHERE:
        runner = Runner(program, ops_of(isa, threads), fuse=True)
        alone = []
        for text in texts:
            cache = runner.cache()
            parts = [text[at : at + 128] for at in range(0, len(text), 128)]
            alone.append(np.concatenate([runner.read([part], [cache]) for part in parts]))
        caches = [runner.cache() for _ in texts]
        while waiting := [i for i, text in enumerate(texts) if caches[i].length < len(text)]:
            sizes = [int(rng.integers(1, 20)) for _ in waiting]
            begins = [caches[i].length for i in waiting]
            parts = [texts[i][at : at + n] for i, at, n in zip(waiting, begins, sizes, strict=True)]
            logits = runner.read(parts, [caches[i] for i in waiting])
            row = 0
            for i, at, part in zip(waiting, begins, parts, strict=True):
                rows = logits[row : row + len(part)]
                assert_same_bits(rows, alone[i][at : at + len(part)])
                row += len(part)


def test_sessions_on_several_threads_share_a_pool() -> None:
    program = program_of(CONFIG)
    ops = ops_of(ISAS[0], 2)
    fused, plain = (Runner(program, ops, fuse=fuse) for fuse in (True, False))
    expected, _ = fused.steps([20, 1, 1, 1])
    wrong: list[int] = []

    def work(index: int) -> None:
        runner = Runner(program, ops, fuse=index % 2 == 0)
        for _ in range(5):
            if not np.array_equal(runner.steps([20, 1, 1, 1])[0], expected, equal_nan=True):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_same_bits(plain.steps([20, 1, 1, 1])[0], expected)


def test_passes_that_do_not_fit_are_refused() -> None:
    runner = Runner(program_of(CONFIG), ops_of(), fuse=True)
    cache = runner.cache()
    cache.reserve(CAPACITY)
    cases: list[tuple[list[int], list[Span], str]] = [
        ([1] * 5, [Span(cache, CAPACITY - 4, 5)], "out of range|outside"),
        ([1], [Span(cache, -1, 1)], "out of range|outside"),
        ([1, 2], [Span(cache, 0, 1)], "sizes disagree"),
        ([1, 2], [Span(cache, 0, 1), Span(cache, 0, 2)], "sizes disagree"),
        ([90], [Span(cache, 0, 1)], "out of range|outside"),
        ([-1], [Span(cache, 0, 1)], "out of range|outside"),
    ]
    for ids, spans, reason in cases:
        with pytest.raises(NativeError, match=reason):
            runner.bound.read(runner.state, ids, spans)


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    program = program_of(CONFIG)
    weights = weights_of(program)
    for name, change in (("layers.2.attn_out", None), ("layers.1.mlp_norm", np.ones(71, "f"))):
        linears, vectors = dict(weights.linears), dict(weights.vectors)
        if change is None:
            linears[name] = KINDS["int8"](72, 107)
        else:
            vectors[name] = change
        with pytest.raises(FormatError, match=name):
            Network(CONFIG, linears, vectors, ops_of(), CAPACITY)


def test_a_soft_cap_is_accurate_near_zero_and_far_from_it() -> None:
    """No call of its own: what a model makes of embedded numbers before its head."""
    m, width = Recorder(1e-5, 18), 700
    x = np.geomspace(1e-12, 1e4, 30 * width, dtype=np.float32)
    x[1::2] *= -1
    values = x.reshape(30, width)
    values[0, :3] = [0, np.inf, np.nan]
    capped, head = m.softcap(m.input(width), 30.0), m.linear(m.input(width), "head", 1)
    program = Program(Block(m.embed("e", 30, width)), (), (), Block(capped), Block(head))
    tables = {"e": DenseTensor(values), "head": DenseTensor(values[:1].copy())}
    with np.errstate(all="ignore"):
        expected = 30 * np.tanh(values.astype(np.float64) / 30)
    for isa in ISAS:
        bound = NativeProgram(ops_of(isa), program, Weights(tables, {}, {}))
        state = bound.state()
        bound.read(state, list(range(30)), [])
        found = bound.hidden(state, 0, 30).array
        np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0)
