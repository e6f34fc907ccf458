"""Short runs side by side, on a model that trains in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from tiny import TinySource  # noqa: E402
from training import OPTIONS  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools.ablation import ARMS, options_of, read_run, run_arm  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402

BASE = replace(OPTIONS, steps=2, save_every=10**6, validate_every=10**6)


def test_arms_differ_from_the_plain_one_as_they_say() -> None:
    plain = options_of(ARMS["plain"], 0, BASE)
    assert plain.loss.gamma is None
    assert options_of(ARMS["dad-0.3"], 0, BASE).loss.gamma == 0.3
    assert options_of(ARMS["scales"], 0, BASE).mode == "scales"
    assert options_of(ARMS["data-free"], 2, BASE) == replace(plain, real_share=0.0, seed=2)
    assert options_of(ARMS["trial"], 0, BASE).lr_embedding == 0
    tokens = {options_of(arm, 0, BASE).steps * BASE.batch for arm in ARMS.values()}
    assert len(tokens) == 1  # equal compute


def test_runs_are_read() -> None:
    assert read_run("dad-0.3:2") == ("dad-0.3", 2)
    assert read_run("plain") == ("plain", 0)
    for run in ("dad-9:1", "plain:x", ":1"):
        with pytest.raises(EdgeDBError, match=run):
            read_run(run)


@pytest.mark.parametrize("name", ["half-0.1", "searched", "scales"])
def test_an_arm_trains_and_is_measured(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "real-x.npy", rng.integers(0, 96, 500).astype(np.uint16))
    np.save(tmp_path / "sampled-0.npy", rng.integers(0, 96, (32, 24)).astype(np.uint16))
    held_out = {"x": torch.from_numpy(rng.integers(0, 96, (4, 32)))}
    teacher = load_teacher(TinySource())
    found = run_arm(name, 1, teacher, tmp_path, held_out, BASE, tmp_path / "work", keep=True)
    assert found["tokens"] == 2 * BASE.batch * BASE.length
    assert found["quality"]["x"]["kl"] != found["start"]["x"]["kl"]
    assert (tmp_path / "work" / "student.safetensors").exists()
