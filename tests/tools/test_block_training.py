"""The training of one layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource, family_source  # noqa: E402

from edgedb.convert import calibrate  # noqa: E402
from edgedb.convert.fdb import fit  # noqa: E402
from tools.block_training import (  # noqa: E402
    BlockOptions,
    Error,
    Hessians,
    fit_start,
    measured,
    parameter_groups,
    train_layer,
)
from tools.decoder import Layer  # noqa: E402
from tools.layerwise import Teacher, matrices_of, vectors_of  # noqa: E402
from tools.streams import Stream  # noqa: E402
from tools.student import empty_student  # noqa: E402

CPU = torch.device("cpu")
OPTIONS = BlockOptions(epochs=4, batch=4, start_tokens=256)
MIXED = {"layers.0.attn_qkv": 3, "layers.0.mlp_down": 4}


class Trial:
    """The first layer of a teacher and of an untrained student, with the states that they read."""

    def __init__(self, source: TinySource, folder: Path, plan: dict[str, int] = MIXED) -> None:
        self.teacher = Teacher(source, CPU)
        self.ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (16, 16))
        self.turns = self.teacher.ends.turns(16)
        enter = self.teacher.ends.enter(
            torch.from_numpy(self.ids), self.teacher.ends.around(self.turns)
        )
        shape = (16, 16, source.config.hidden_size)
        self.inputs = Stream.make(folder / "inputs.npy", shape, [enter], CPU, 4)
        self.teaching = self.teacher.layer(0)
        self.targets = self.inputs.to(folder / "t.npy", lambda x: self.teaching(x, self.turns))
        layer = empty_student(source.config, plan=plan).layers[0]
        assert isinstance(layer, Layer)
        self.layer = layer

    def fit(self) -> None:
        fit_start(self.layer, self.teaching, self.inputs, self.inputs, self.turns, OPTIONS)

    def train(self, weights: np.ndarray | None = None, **changes: Any) -> tuple[float, float]:
        weights = np.ones(self.inputs.shape[2], np.float32) if weights is None else weights
        options = replace(OPTIONS, **changes)
        return train_layer(
            self.layer, self.inputs, self.targets, self.turns, weights, options, (0,)
        )


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_start_is_the_exporters_fit(family: str, tmp_path: Path) -> None:
    """Matrix by matrix, for what the fitted ones before it give, and errors before the layer."""
    source = family_source(family)
    trial = Trial(source, tmp_path)
    noise = 0.1 * torch.randn(trial.inputs.shape, generator=torch.Generator().manual_seed(0))
    drifted = torch.cat(list(trial.inputs.batches())) + noise
    inputs = Stream.make(tmp_path / "drifted.npy", trial.inputs.shape, [drifted], CPU, 4)
    fit_start(trial.layer, trial.teaching, inputs, trial.inputs, trial.turns, OPTIONS)
    expected = calibrate.LayerInputs(source, trial.ids.astype(np.int32))
    expected.hidden = drifted.numpy()
    modules = matrices_of(trial.layer)

    def compare(name: str, needs: calibrate.Needs, expert: int | None) -> np.ndarray:
        found = fit(
            source.tensor(name), MIXED.get(name, 2), hessians=needs.hessians, missing=needs.missing
        )
        mine = modules[name.removeprefix("layers.0.")].weight().detach().numpy()
        # Sums of float32 in another order may turn a plane that lies between two.
        far = np.abs(mine - found.quantized) > 0.02 * np.abs(mine).max()
        assert far.mean() < 0.05, name
        return mine

    expected.next_layer(compare)
    for name, vector in vectors_of(trial.layer).items():
        assert torch.equal(vector, vectors_of(trial.teaching)[name])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_training_lowers_the_error(family: str, tmp_path: Path) -> None:
    trial = Trial(family_source(family), tmp_path, plan={})
    trial.fit()
    before, after = trial.train(epochs=12)
    assert after < 0.95 * before
    error = Error.of(np.ones(64, np.float32), trial.inputs, trial.targets)
    left = measured(trial.layer, trial.inputs, trial.targets, trial.turns, error)
    assert left == pytest.approx(after)


def test_planes_and_scales_learn_and_nothing_else(tmp_path: Path) -> None:
    trial = Trial(TinySource(), tmp_path)
    trial.fit()
    plain = {name: v.clone() for name, v in vectors_of(trial.layer).items()}
    before = {name: v.clone() for name, v in trial.layer.state_dict().items()}
    trial.train()
    for name, vector in vectors_of(trial.layer).items():
        assert torch.equal(vector, plain[name])
    for name, value in trial.layer.state_dict().items():
        learns = name.endswith(("latent", "alphas", "alpha1", "alpha2"))
        assert torch.equal(value, before[name]) is not learns, name
    groups = parameter_groups(trial.layer, OPTIONS)
    learned = {id(p) for group in groups for p in group["params"]}
    assert learned == {id(p) for p in trial.layer.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in trial.teaching.parameters())


def test_a_channel_that_costs_more_ends_nearer(tmp_path: Path) -> None:
    def error_of_half(weights: np.ndarray, folder: Path) -> float:
        folder.mkdir()
        trial = Trial(TinySource(), folder)
        trial.fit()
        trial.train(weights)
        half = np.repeat(np.float32([1, 0]), 32)
        error = Error.of(half, trial.inputs, trial.targets)
        return measured(trial.layer, trial.inputs, trial.targets, trial.turns, error)

    alike = error_of_half(np.ones(64, np.float32), tmp_path / "alike")
    first = error_of_half(np.repeat(np.float32([1, 0.01]), 32), tmp_path / "first")
    assert first < alike


def test_a_training_that_makes_it_worse_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(TinySource(), tmp_path)
    trial.fit()
    before = {name: v.clone() for name, v in trial.layer.state_dict().items()}
    monkeypatch.setattr(BlockOptions, "share", lambda self, step, steps: 1000.0)
    error, after = trial.train()
    assert error == after
    for name, value in trial.layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_hessians_are_means_over_all_inputs() -> None:
    x = torch.randn(2, 3, 5000)
    seen = Hessians()
    seen.add(x[:1])
    seen.add(x[1:])
    rows = x.flatten(0, 1)
    for part, where in zip(seen.means(), calibrate.panels(5000), strict=True):
        expected = (rows[:, where].t() @ rows[:, where] / 6).numpy()
        np.testing.assert_allclose(part, expected, atol=1e-5)


def test_without_weights_all_channels_count_the_same(tmp_path: Path) -> None:
    trial = Trial(TinySource(), tmp_path)
    dead, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
    found = [Error.of(w, trial.inputs, trial.targets).weights for w in (dead, ones, 7 * ones)]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[1], found[2])
