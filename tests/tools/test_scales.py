"""Scales alone, by the predictions of the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import family_source  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools import scales  # noqa: E402
from tools.dad import LossOptions, distillation_loss  # noqa: E402
from tools.decoder import Decoder, load_teacher  # noqa: E402
from tools.scales import ScaleOptions, Walk, fix_planes, train_scales  # noqa: E402
from tools.streams import Stream  # noqa: E402
from tools.student import make_student  # noqa: E402

CPU = torch.device("cpu")
PLAN = {"layers.0.attn_qkv": 3, "layers.1.mlp_down": 4}
OPTIONS = ScaleOptions(steps=8, batch=8, micro_batch=4, warmup=2, save_every=3)


class Trial:
    """A student, and where its teacher goes."""

    def __init__(self, folder: Path, family: str = "llama") -> None:
        self.teacher = load_teacher(family_source(family))
        self.student = make_student(self.teacher, "least-squares", plan=PLAN)
        self.ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (8, 16)))
        hidden, self.head = self.teacher(self.ids)
        self.goals = Stream.make(folder / "goals.npy", tuple(hidden.shape), [hidden], CPU, 4)
        self.state = folder / "scales.pt"

    def walk(self) -> Walk:
        return Walk(self.student, self.ids, self.goals, self.head)

    def train(self, progress=lambda step, kl: None) -> tuple[float, float]:
        return train_scales(self.walk(), OPTIONS, self.state, progress)


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_there_and_back_gives_the_gradients_of_the_whole(tmp_path: Path, family: str) -> None:
    trial = Trial(tmp_path, family)
    student, goal = trial.student, trial.goals.take(np.arange(8))
    groups = scales.parameter_groups(student, fix_planes(student, CPU), 1.0)
    learned = [p for group in groups for p in group["params"]]
    kl = trial.walk().forth_and_back(np.arange(8), 0.5)
    mine = [p.grad.clone() for p in learned]
    student.zero_grad()
    hidden, head = student(trial.ids)
    targets = torch.full_like(trial.ids, -1)
    loss, _ = distillation_loss(hidden, head, goal, trial.head, targets, LossOptions())
    (0.5 * loss).backward()
    assert kl.item() == pytest.approx(loss.item(), rel=1e-4)
    for gradient, p in zip(mine, learned, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-6)


def test_a_student_may_move_to_its_device_after_its_walk_was_made(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    weights = trial.student.state_dict()
    trial.student.to("meta")
    walk = trial.walk()
    trial.student.to_empty(device="cpu").load_state_dict(weights)
    assert walk.measured(4) > 0


def planes_and_scales(student: Decoder) -> tuple[dict, dict]:
    weights = {name: m.weight().detach() for name, m in student.matrices()}
    zero = {name: w == 0 for name, w in weights.items()}
    return zero, weights


def test_scales_learn_and_planes_stay(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    zero, weights = planes_and_scales(trial.student)
    before, after = trial.train()
    assert after < 0.98 * before
    zero_then, weights_then = planes_and_scales(trial.student)
    for name, before in zero.items():
        # In three planes and more, zero may also be a sum that is none any more.
        if PLAN.get(name, 2) == 2:
            assert torch.equal(before, zero_then[name]), name
        assert not torch.equal(weights[name], weights_then[name]), name
    assert not any(p.requires_grad for p in trial.student.parameters())


@pytest.mark.parametrize("room", [True, False])
def test_weights_are_held_where_there_is_room(tmp_path: Path, monkeypatch, room: bool) -> None:
    found = []
    for name, place in (("usual", scales.place), ("told", lambda *_: room)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(scales, "place", place)
        found.append(Trial(tmp_path / name).train())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_held_weights_have_gradients_in_half_precision(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scales, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    found = []
    for held in (False, True):
        (tmp_path / str(held)).mkdir()
        trial = Trial(tmp_path / str(held))
        matrices = [*fix_planes(trial.student, CPU)]
        learned = [scale.requires_grad_() for fixed in matrices for scale in fixed.scales()]
        with scales.holding(matrices if held else []):
            trial.walk().forth_and_back(np.arange(8), 1.0)
        found.append(torch.cat([p.grad.flatten() for p in learned]))
    assert found[0].norm() > 0
    torch.testing.assert_close(*found, rtol=0.1, atol=0.02 * found[0].abs().max().item())


def test_a_killed_training_goes_on_with_the_same_result(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = Trial(tmp_path / "whole")
    expected = whole.train()

    def die(step: int, kl: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trial(tmp_path / "killed").train(die)
    again = Trial(tmp_path / "killed")
    steps = []
    assert again.train(lambda step, kl: steps.append(step)) == expected
    assert steps == [4, 5, 6, 7, 8]
    for mine, theirs in zip(again.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.state.write_bytes(b"no state")
    with pytest.raises(EdgeDBError, match="remove"):
        trial.train()


def test_a_training_that_makes_it_worse_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(tmp_path)
    _, weights = planes_and_scales(trial.student)
    monkeypatch.setattr(ScaleOptions, "share", lambda self, step: 1000.0)
    before, after = trial.train()
    assert before == after
    for name, weight in planes_and_scales(trial.student)[1].items():
        assert torch.equal(weight, weights[name])
