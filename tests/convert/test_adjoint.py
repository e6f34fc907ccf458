"""The adjoint of every operation, against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiny import TinySource

from edgedb.convert.adjoint import Adjoint
from edgedb.convert.forward import Float32Program
from edgedb.model.families import program_of
from edgedb.ops.program import Block, Program
from edgedb.ops.recorder import Recorder
from edgedb.ops.values import OPERATIONS, RopeTable, Value

WIDTH, LENGTH = 24, 7
ROPE = RopeTable((1.0, 0.3, 0.05, 0.002), factor=1.25)


def routed(m: Recorder, x: Value) -> Value:
    return m.route(m.linear(x, "router", 5), 2, normalized=False)


LAYERS: dict[str, Callable[[Recorder, Value], Value]] = {
    "input": lambda m, x: x,
    "linear": lambda m, x: m.linear(x, "w", WIDTH, bias=True),
    "rms_norm": lambda m, x: m.rms_norm(x, "norm"),
    "rms_norm of heads": lambda m, x: m.rms_norm(x, "norm", heads=3),
    "layer_norm": lambda m, x: m.layer_norm(x, "norm"),
    "layer_norm of heads": lambda m, x: m.layer_norm(x, "norm", heads=3, bias=False),
    "slice": lambda m, x: m.linear(x.split(8, 16)[1], "w", WIDTH),
    "add": lambda m, x: x + m.silu(x),
    "mul": lambda m, x: x * m.silu(x),
    "silu": lambda m, x: m.silu(x),
    "gelu_tanh": lambda m, x: m.gelu_tanh(x),
    "gelu": lambda m, x: m.activation("gelu", x),
    "relu": lambda m, x: m.activation("relu", x),
    "rope": lambda m, x: m.rope(x, 3, ROPE),
    "softcap": lambda m, x: m.softcap(x, 1.5),
    "attention": lambda m, x: m.attention(
        m.linear(x, "q", 32), m.linear(x, "k", 16), x.split(8, 16)[1]
    ),
    "attention beside sinks": lambda m, x: m.attention(x, x, m.silu(x), sinks="sinks"),
    "clamped_gate": lambda m, x: m.clamped_gate(x, m.silu(x), 1.7, 0.8),
    "route": lambda m, x: m.route(m.linear(x, "router", 5), 2, normalized=True),
    "route of all": lambda m, x: m.route(m.linear(x, "router", 5), 3, normalized=False),
    "experts": lambda m, x: m.experts(x, routed(m, x), "w", 6, parts=2),
    "experts with their own": lambda m, x: m.experts(x, routed(m, x), "w", 6, own=True, bias=True),
    "mix": lambda m, x: m.mix(x, routed(m, m.silu(x))),
    "attention of slopes": lambda m, x: m.attention(
        m.linear(x, "q", 32), m.linear(x, "k", 16), m.linear(x, "v", 16), slopes=(0.5, 0.3, 0.1, 0)
    ),
    "attention with a cap": lambda m, x: m.attention(x, x, m.silu(x), cap=0.8),
    "attention in a window": lambda m, x: m.attention(x, x, m.silu(x), scale=0.7, window=3),
}


def program(layer: Callable[[Recorder, Value], Value]) -> Program:
    m = Recorder(1e-3, 8)
    block = Block(layer(m, m.input(WIDTH)))
    empty = Block(m.input(WIDTH))
    return Program(empty, (block,), (0,), empty, empty)


def difference(f: Callable[[np.ndarray], float], x: np.ndarray, step: np.ndarray) -> float:
    """Of ``f`` along ``step``, central."""
    h = 1e-5
    return (f(x + h * step) - f(x - h * step)) / (2 * h)


def test_every_operation_has_a_case() -> None:
    assert {name.split()[0] for name in LAYERS} == set(OPERATIONS) - {"embed", "position"}


@pytest.mark.parametrize("name", LAYERS)
def test_adjoint_of(name: str) -> None:
    rng = np.random.default_rng(0)
    made = program(LAYERS[name])
    block = made.kinds[0]
    stacks = {n: (count,) for n, count in block.stacks.items()}
    weights = {n: rng.normal(size=(*stacks.get(n, ()), *s)) for n, s in block.matrices.items()}
    vectors = {n: rng.normal(size=length) for n, length in block.vectors.items()}
    forward = Float32Program(made, LENGTH)
    x = rng.normal(size=(2, LENGTH, WIDTH))
    back = rng.normal(size=(2, LENGTH, block.output.width))

    def loss(x: np.ndarray) -> float:
        return float(np.vdot(forward.values(block, x, vectors, weights)[block.output], back))

    seen = {}
    got = Adjoint(forward).block(
        block, x, back, vectors, weights, lambda n, x, g: seen.update({n: (x, g)})
    )
    for _ in range(3):
        step = rng.normal(size=x.shape)
        assert np.vdot(got, step) == pytest.approx(difference(loss, x, step), rel=1e-5, abs=1e-6)
    assert set(seen) == set(block.matrices)
    for matrix, (inputs, g) in seen.items():
        if matrix in block.stacks:
            continue  # what an error of the weights costs, to first order
        error = rng.normal(size=weights[matrix].shape)

        def with_error(size: np.ndarray, matrix: str = matrix, error: np.ndarray = error) -> float:
            changed = {**weights, matrix: weights[matrix] + size * error}
            return float(np.vdot(forward.values(block, x, vectors, changed)[block.output], back))

        slope = difference(with_error, np.zeros(()), np.ones(()))
        assert np.vdot(inputs @ error.T, g) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_a_whole_layer_in_float32() -> None:
    source = TinySource()
    made = program_of(source.config)
    forward = Float32Program(made, LENGTH)
    block = made.kinds[0]
    weights = {n: source.tensor(f"layers.0.{n}") for n in block.matrices}
    vectors = {n: source.tensor(f"layers.0.{n}") for n in block.vectors}
    rng = np.random.default_rng(1)
    x, back, step = (rng.normal(size=(3, LENGTH, made.width)).astype(np.float32) for _ in range(3))
    got = Adjoint(forward).block(block, x, back, vectors, weights)
    assert got.dtype == np.float32

    def loss(x: np.ndarray) -> float:
        return float(np.vdot(forward.values(block, x, vectors, weights)[block.output], back))

    want = difference(loss, x.astype(np.float64), step.astype(np.float64))
    assert np.vdot(got, step) == pytest.approx(want, rel=1e-4)
