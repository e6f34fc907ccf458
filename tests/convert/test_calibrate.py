"""What a matrix is fitted for: the inputs that quantized layers give, the teacher's outputs."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import TinySource

from edgedb.convert.calibrate import LayerInputs, Needs, embedded
from edgedb.convert.fdb import fit
from edgedb.convert.feedback import FeedbackOptions
from edgedb.convert.forward import Float32Program, Meeting
from edgedb.model.families import program_of


@pytest.fixture
def source() -> TinySource:
    return TinySource()


def some_ids(source: TinySource) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, source.config.vocab_size, (6, 20), dtype=np.int32)


def test_the_exact_stream_is_the_teachers(source: TinySource) -> None:
    ids = some_ids(source)
    program = program_of(source.config)
    forward = Float32Program(program, ids.shape[1])
    want = embedded(source, ids)
    np.testing.assert_array_equal(want, source.tensor("embedding")[ids])
    inputs = LayerInputs(source, ids)
    for layer in range(source.config.n_layers):
        prefix = f"layers.{layer}."
        vectors = {n: source.tensor(prefix + n) for n in program.kinds[0].vectors}
        weights = {n: source.tensor(prefix + n) for n in program.kinds[0].matrices}
        want = forward.layer(layer, want, vectors, lambda name, x, _, w=weights: w[name])
        asked = []

        def replace(name: str, needs: Needs, _: int | None, asked: list[str] = asked) -> np.ndarray:
            asked.append(name)
            return source.tensor(name) * np.float32(0.9)

        inputs.next_layer(replace)
        assert asked == [prefix + name for name in program.kinds[0].matrices]
        np.testing.assert_allclose(inputs.exact, want, atol=1e-5)
        assert np.abs(inputs.hidden - want).max() > 0.1
    assert inputs.head().missing is None


def test_nothing_is_missing_where_weights_are_exact(source: TinySource) -> None:
    inputs = LayerInputs(source, some_ids(source))

    def replace(name: str, needs: Needs, expert: int | None) -> np.ndarray:
        assert needs.missing is not None
        assert np.abs(needs.missing).max() < 1e-4
        return source.tensor(name)

    for _ in range(source.config.n_layers):
        inputs.next_layer(replace)


@pytest.mark.parametrize(("rows", "added"), [(9, False), (9, True), (40, False), (40, True)])
def test_the_goal_gives_what_the_teacher_gives(rows: int, added: bool) -> None:
    """By least squares over all tokens, with the streams' difference where the product is added."""
    rng = np.random.default_rng(1)
    weight, x, base, other = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((rows, 64), (300, 64), (300, rows), (300, rows))
    )
    here = x + 0.3 * rng.normal(size=x.shape).astype(np.float32) @ np.eye(64, dtype=np.float32)
    needs = Needs.of(
        weight, Meeting(x, base if added else None), Meeting(here, other if added else None)
    )
    want = x @ weight.T + (base - other if added else 0)
    goal = np.linalg.lstsq(here, want, rcond=None)[0].T
    options = FeedbackOptions(damping=1e-6, shrinkage=0)
    found = fit(weight, 8, hessians=needs.hessians, missing=needs.missing, options=options)

    def lost(matrix: np.ndarray) -> float:
        return float(np.square(want - here @ matrix.T).sum())

    assert lost(found.quantized) < 1.001 * lost(goal) < 0.9 * lost(weight)
    stored = np.square(weight - found.quantized).sum() / np.square(weight).sum()
    assert found.error == pytest.approx(stored, rel=1e-3), "of the weights, not of the goal"


def test_outputs_are_nearer_to_the_teachers_than_with_its_weights(source: TinySource) -> None:
    """After two layers of one pair, with the same inputs for both."""
    ids = some_ids(source)
    ends = []
    for corrected in (False, True):
        inputs = LayerInputs(source, ids)

        def replace(
            name: str, needs: Needs, _: int | None, corrected: bool = corrected
        ) -> np.ndarray:
            missing = needs.missing if corrected else None
            weight = source.tensor(name)
            return fit(weight, 2, hessians=needs.hessians, missing=missing).quantized

        for _ in range(source.config.n_layers):
            inputs.next_layer(replace)
        ends.append(np.square(inputs.exact - inputs.hidden).sum())
    assert ends[1] < 0.8 * ends[0]


def test_what_a_product_is_added_to_is_met(source: TinySource) -> None:
    program = program_of(source.config)
    forward = Float32Program(program, 20)
    block = program.kinds[0]
    vectors = {n: source.tensor("layers.0." + n) for n in block.vectors}
    x = embedded(source, some_ids(source))
    met: dict[str, list[Meeting]] = {}

    def weights_at(name: str, here: list[Meeting], expert: int | None) -> list[np.ndarray]:
        met[name] = list(here)
        return [source.tensor("layers.0." + name)] * 2

    first, second = forward.streams(0, [x, x[::-1]], vectors, weights_at)
    np.testing.assert_array_equal(first, second[::-1])
    assert {name for name, here in met.items() if here[0].base is not None} == {
        "attn_out",
        "mlp_down",
    }
    np.testing.assert_array_equal(met["attn_out"][0].base, x.reshape(-1, x.shape[-1]))
