"""The fit of planes and scales: exact cases, degenerate groups, and what each refinement gains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgedb.convert import fdb, feedback
from edgedb.convert.fdb import Fit, fit
from edgedb.errors import FormatError
from edgedb.format.packing import dequantize, unpack_half, unpack_planes


def gaussian(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, cols)).astype(np.float32)


def inputs(cols: int, seed: int = 1) -> np.ndarray:
    """Correlated activations with a few loud columns, as a transformer's are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(1024, 16)) @ rng.normal(size=(16, cols))
    x = (mixed + rng.normal(size=(1024, cols))) * np.exp(rng.normal(0, 1, cols))
    return x.astype(np.float32)


def check_format(found: Fit, weight: np.ndarray) -> None:
    """What the format promises, and that the report says what the tensor holds."""
    tensor = found.tensor
    assert (tensor.rows, tensor.cols) == weight.shape
    assert np.isfinite(tensor.row_scale).all() and (tensor.row_scale >= 0).all()
    for blocks in tensor.blocks:
        _, _, c1, c2 = (a.astype(int) for a in unpack_planes(blocks, *weight.shape))
        assert np.abs(c1).max(initial=0) <= 127
        assert np.abs(c1 + c2).max(initial=0) <= 127
        assert (np.abs(c1) >= np.abs(c2)).all()
    if tensor.half is not None:
        assert np.abs(unpack_half(tensor.half, *weight.shape)[1].astype(int)).max() <= 127
    stored = dequantize(tensor)
    size = max(float(np.abs(stored).max(initial=0)), 1e-30)
    np.testing.assert_allclose(found.quantized, stored, atol=1e-5 * size)
    lost = float(((weight - stored).astype(np.float64) ** 2).sum())
    whole = float((weight.astype(np.float64) ** 2).sum())
    assert found.error == pytest.approx(lost / whole if whole else 0.0, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (7, 65), (64, 64), (65, 172), (130, 576)])
@pytest.mark.parametrize("planes", [2, 3, 4, 5, 6])
def test_every_shape_keeps_the_format(shape: tuple[int, int], planes: int) -> None:
    weight = gaussian(*shape)
    x = inputs(shape[1])
    for found in (
        fit(weight, planes),
        fit(weight, planes, method="rtn"),
        fit(weight, planes, hessians=[x.T @ x]),
    ):
        check_format(found, weight)
        assert found.tensor.planes == planes


# Gaussian weights; the design's table has 0.113 for one pair with float scales. With opposite
# signs in each pair two pairs have 0.0080.
@pytest.mark.parametrize(
    ("planes", "bound"),
    [(2, 0.1139), (3, 0.027), (4, 0.0062), (5, 0.0019), (6, 0.00046), (7, 1.2e-4), (8, 3.2e-5)],
)
def test_error_on_gaussian_weights(planes: int, bound: float) -> None:
    weight = gaussian(256, 576)
    found = fit(weight, planes)
    assert found.error < bound
    assert found.error < 0.85 * fit(weight, planes, method="rtn").error


@pytest.mark.parametrize("planes", [2, 3, 4, 5, 6])
def test_weights_on_a_grid_are_recovered(planes: int) -> None:
    rng = np.random.default_rng(3)
    high = 1 << (planes - 1)
    steps = rng.integers(1 - high, high + 1, (8, 128))
    steps[:, ::64], steps[:, 1::64] = high, 1 - high  # every group spans its grid
    weight = (steps * 0.0125).astype(np.float32)
    assert fit(weight, planes).error < 1e-5
    assert fit(-weight, planes).error < 1e-5, "the sign of the grid is free"
    assert fit(weight, planes, method="rtn").error < 1e-9


@pytest.mark.parametrize(("planes", "worst"), [(2, 1.3), (3, 2.5)])
def test_a_group_is_fitted_nearly_as_well_as_can_be(planes: int, worst: float) -> None:
    """Brute force over every assignment of codes to six weights, with the scales that suit it best.

    Of six weights the best fit is far from what a grid suggests: this is the hardest case.
    """
    weight = gaussian(12, 6)
    found = fit(weight, planes)
    lost = ((weight - found.quantized) ** 2).sum(axis=1)
    bits = np.array(list(itertools.product((0, 1), repeat=6)), float)[1:]
    best = np.full(len(weight), np.inf)
    for chosen in itertools.combinations(bits, planes):
        planes_of_six = np.stack(chosen, 1)
        left = weight.T - planes_of_six @ np.linalg.lstsq(planes_of_six, weight.T, rcond=None)[0]
        best = np.minimum(best, (left**2).sum(axis=0))
    assert lost.sum() <= worst * best.sum() + 1e-9


def test_signs_within_a_pair_are_free() -> None:
    found = fit(gaussian(64, 256), 4)
    codes = [unpack_planes(blocks, 64, 256)[2:] for blocks in found.tensor.blocks]
    same = [(c1.astype(int) * c2 > 0).mean() for c1, c2 in codes]
    assert 0.1 < max(same) < 1


def test_importance_moves_the_error_to_other_columns() -> None:
    weight = gaussian(64, 128)
    importance = np.ones(128, np.float32)
    importance[::8] = 100
    plain, weighted = fit(weight, 4), fit(weight, 4, importance=importance)

    def loud(found: Fit) -> float:
        return float(((weight - found.quantized)[:, ::8] ** 2).sum())

    assert loud(weighted) < 0.5 * loud(plain)
    assert weighted.error > plain.error


@pytest.mark.parametrize("planes", [2, 3, 4, 6])
def test_feedback_lowers_the_output_error(planes: int) -> None:
    weight, x = gaussian(96, 192), inputs(192)
    h = x.T @ x
    alone, fed = fit(weight, planes), fit(weight, planes, hessians=[h])

    def output_error(found: Fit) -> float:
        lost = (weight - found.quantized) @ x.T
        return float((lost**2).sum() / ((weight @ x.T) ** 2).sum())

    assert fed.output_error == pytest.approx(output_error(fed), rel=1e-3)
    assert output_error(fed) < 0.6 * output_error(alone)


def test_sweeps_never_raise_the_damped_loss() -> None:
    weight, x = gaussian(32, 192), inputs(192)
    h = x.T @ x
    h[np.diag_indices(192)] += 0.01 * np.diagonal(h).mean()

    def loss(sweeps: int) -> float:
        options = feedback.FeedbackOptions(sweeps=sweeps, damping=0.0, shrinkage=0.0)
        d = weight - fit(weight, 4, hessians=[h], options=options).quantized
        return float(np.vdot(d @ h, d))

    losses = [loss(n) for n in range(4)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(losses))


def test_the_number_of_threads_changes_nothing() -> None:
    weight, x = gaussian(70, 130), inputs(130)
    fits = [fit(weight, 4, hessians=[x.T @ x], threads=n) for n in (1, 2, 3)]
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].tensor.blocks, other.tensor.blocks)
        np.testing.assert_array_equal(fits[0].tensor.row_scale, other.tensor.row_scale)


def test_wide_matrices_are_cut_into_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_PANEL", 128)
    parts = feedback.panels(300)
    assert [p.start for p in parts] == [0, 64, 192] and parts[-1].stop == 300
    monkeypatch.setattr(fdb, "CHUNK_ROWS", 16)
    weight, x = gaussian(40, 300), inputs(300)
    found = fit(weight, 4, hessians=[x[:, p].T @ x[:, p] for p in parts])
    check_format(found, weight)
    assert found.output_error is not None and found.output_error < found.error


group = arrays(np.float32, (2, 70), elements=st.floats(-4, 4, width=32))
degenerate = st.one_of(
    group,
    st.floats(-1e3, 1e3, width=32).map(lambda v: np.full((2, 70), v, np.float32)),
    st.tuples(st.integers(0, 69), st.floats(-1e6, 1e6, width=32)).map(
        lambda at: np.eye(70, dtype=np.float32)[[at[0], 0]] * np.float32(at[1])
    ),
    st.sampled_from([1e-38, 1e-30, 1e-12, 1e12, 1e30]).map(
        lambda s: (gaussian(2, 70) * 50 * s).astype(np.float32)
    ),
)


@settings(max_examples=60, deadline=None)
@given(weight=degenerate, planes=st.integers(2, 6), method=st.sampled_from(["fdb", "rtn"]))
def test_degenerate_groups(weight: np.ndarray, planes: int, method: fdb.Method) -> None:
    found = fit(weight, planes, method=method)
    stored = dequantize(found.tensor)
    assert np.isfinite(stored).all()
    if not np.any(weight):
        assert not np.any(stored)
    # Never worse than storing zeros (up to rounding), whatever the group looks like.
    lost = ((weight.astype(np.float64) - stored) ** 2).sum()
    whole = (weight.astype(np.float64) ** 2).sum()
    assert lost <= 1.3 * whole + 1e-70


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_constants_are_exact(value: float) -> None:
    weight = np.full((3, 64), value, np.float32)
    np.testing.assert_allclose(fit(weight, 2).quantized, weight, rtol=1e-6)


def test_columns_without_input_do_no_harm() -> None:
    weight, x = gaussian(16, 128), inputs(128)
    x[:, 64:] = 0
    found = fit(weight, 4, hessians=[x.T @ x])
    check_format(found, weight)
    assert fit(weight, 4, hessians=[np.zeros((128, 128), np.float32)]).output_error == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_refused(bad: float) -> None:
    weight = gaussian(4, 64)
    weight[1, 2] = bad
    with pytest.raises(FormatError, match="NaN or infinity"):
        fit(weight, 4)


def test_arguments_are_checked() -> None:
    for planes in (1, 9):
        with pytest.raises(ValueError, match=f"{planes} planes"):
            fit(gaussian(2, 64), planes)
    with pytest.raises(ValueError, match="importance"):
        fit(gaussian(2, 64), 2, importance=np.ones(63, np.float32))
    with pytest.raises(ValueError, match="Hessian"):
        fit(gaussian(2, 64), 2, hessians=[np.eye(63, dtype=np.float32)])
