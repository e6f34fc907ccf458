"""What a matrix is expected to cost, against what it does when it is stored so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import Changed, TinySource, ids_of, log_probabilities

from edgedb.convert.fdb import fit
from edgedb.convert.sensitivity import ERROR, sensitivities
from edgedb.model.families import program_of


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    source = TinySource(tied=False)
    file = tmp_path_factory.mktemp("costs") / "inputs"
    steps: list[tuple[int, int]] = []
    found = sensitivities(
        source, ids_of(source, 48, 16), file, progress=lambda *step: steps.append(step)
    )
    assert not file.exists()
    assert steps == [(i + 1, 6) for i in range(6)]
    return found


def test_every_matrix_costs_something(costs: dict[str, float]) -> None:
    assert list(costs) == list(program_of(TinySource(tied=False).config).matrices())
    assert all(cost > 0 for cost in costs.values())


@pytest.mark.parametrize(
    "name", ["layers.0.attn_out", "layers.0.mlp_down", "layers.1.mlp_gate_up", "head", "embedding"]
)
def test_the_cost_is_the_kl(costs: dict[str, float], name: str) -> None:
    """Of three planes in one matrix; to second order, and with weights alone fitted."""
    source = TinySource(tied=False)
    ids = ids_of(source, 48, 16)
    weight = source.tensor(name)
    change = fit(weight, 3).quantized - weight
    exact = log_probabilities(source, ids)
    changed = log_probabilities(Changed(name, change, tied=False), ids)
    kl = float((np.exp(exact) * (exact - changed)).sum(-1).mean())
    assert 0.4 < costs[name] * ERROR[3] / kl < 2.5


def test_a_tied_table_costs_as_both(tmp_path: Path) -> None:
    source = TinySource()
    found = sensitivities(source, ids_of(source, 16, 16), tmp_path / "inputs")
    assert list(found) == list(program_of(source.config).matrices())
    assert found["embedding"] > max(cost for n, cost in found.items() if n != "embedding") / 10


@pytest.mark.parametrize("planes", [3, 4, 6])
def test_errors_fall_alike(planes: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(8, size=(96, 256)).astype(np.float32)
    mixed = rng.normal(size=(256, 40)).astype(np.float32)
    h = mixed @ mixed.T + np.eye(256, dtype=np.float32)

    def error(n: int) -> float:
        found = fit(weight, n, hessians=[h]).output_error
        assert found is not None
        return found

    assert error(planes) / error(2) == pytest.approx(ERROR[planes], rel=0.3)
