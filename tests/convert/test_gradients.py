"""The whole model's gradient: against finite differences, and as the curvature of the KL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import Changed, TinySource, ids_of, log_probabilities

from edgedb.convert.gradients import backwards, draw
from edgedb.errors import EdgeDBError, FormatError
from edgedb.model.families import program_of

NAMES = ("layers.0.attn_qkv", "layers.0.mlp_down", "layers.1.mlp_gate_up", "layers.1.attn_out")


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_differences_of_the_loss(tmp_path: Path, tied: bool) -> None:
    source = TinySource(tied=tied)
    ids = ids_of(source, 3, 8)
    slopes: dict[str, float] = {}
    rng = np.random.default_rng(2)
    shapes = program_of(source.config).matrices()
    changes = {n: rng.normal(size=shapes[n]) for n in (*NAMES, *(() if tied else ("head",)))}
    drawn: list[np.ndarray] = []

    def seen(name: str, x: np.ndarray, gradient: np.ndarray) -> None:
        if name == "head":
            drawn.append(gradient.argmin(-1))
        if name in changes:
            found = float(np.vdot(x @ changes[name].T, gradient))
            slopes[name] = slopes.get(name, 0) + found

    done = list(backwards(source, ids, tmp_path / "inputs", 0, seen))
    assert done == ["layers.0", "layers.1", "head", "layers.1", "layers.0", "embedding"]
    labels = np.concatenate(drawn)

    def loss(size: float, name: str) -> float:
        log_p = log_probabilities(Changed(name, size * changes[name], tied=tied), ids)
        return -float(np.take_along_axis(log_p, labels[..., None], -1).sum())

    for name in changes:
        want = (loss(1e-4, name) - loss(-1e-4, name)) / 2e-4
        assert slopes[name] == pytest.approx(want, rel=2e-3, abs=2e-3), name


def test_half_its_square_is_the_kl_of_a_small_error(tmp_path: Path) -> None:
    source = TinySource()
    ids = ids_of(source, 24, 8)
    name = "layers.0.mlp_down"
    change = 0.02 * np.random.default_rng(3).normal(size=(64, 100))
    squares = []

    def seen(at: str, x: np.ndarray, gradient: np.ndarray) -> None:
        if at == name:
            squares.extend(np.einsum("stc,rc,str->s", x, change, gradient) ** 2)

    for seed in range(12):
        list(backwards(source, ids, tmp_path / "inputs", seed, seen))
    exact = log_probabilities(source, ids)
    kl = (np.exp(exact) * (exact - log_probabilities(Changed(name, change), ids))).sum()
    assert np.mean(squares) / 2 * len(ids) == pytest.approx(kl, rel=0.3)


def test_labels_are_drawn_as_likely_as_the_model_says() -> None:
    p = np.tile(np.float32([0.0, 0.5, 0.2, 0.3, 0.0]), (20000, 1))
    drawn = draw(p, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / len(p), p[0], atol=0.02)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    source = TinySource()
    with pytest.raises(EdgeDBError, match=r"/dev/full: No space left on device\. Run the same"):
        list(backwards(source, ids_of(source, 9, 64), Path("/dev/full"), 0, lambda *seen: None))


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    name = "layers.1.attn_out"
    source = Changed(name, np.nan)
    with pytest.raises(FormatError, match=f"{name}: weights hold NaN"):
        list(backwards(source, ids_of(source, 2, 8), tmp_path / "f", 0, lambda *seen: None))
