"""Training block by block, from the first layer to a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TRAINED, TinySource, family_source  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools import block_run, streams  # noqa: E402
from tools.block_run import BlockRun, RunOptions  # noqa: E402
from tools.block_training import BlockOptions  # noqa: E402
from tools.decoder import Decoder, load_teacher  # noqa: E402
from tools.quality import evaluate  # noqa: E402
from tools.scales import ScaleOptions  # noqa: E402
from tools.student import make_student, plan_of  # noqa: E402

PLAN = {"layers.0.attn_qkv": 3, "layers.1.mlp_down": 4}
OPTIONS = RunOptions(
    gradient_tokens=64,
    blocks=BlockOptions(epochs=3, batch=8, start_tokens=256),
    scales=ScaleOptions(steps=4, batch=8, micro_batch=4, warmup=1, save_every=2),
)
IDS = np.random.default_rng(0).integers(0, 96, (16, 16))


def run_of(
    folder: Path, source: TinySource | None = None, options: RunOptions = OPTIONS, **given: Any
) -> BlockRun:
    plan = given.pop("plan", PLAN)
    return BlockRun(
        source or TinySource(), folder / "out", IDS, plan, options,
        device=torch.device("cpu"), **given,
    )  # fmt: skip


def kl(student: Decoder, source: TinySource) -> float:
    held_out = torch.from_numpy(np.random.default_rng(1).integers(0, 96, (16, 16)))
    return evaluate(student, load_teacher(source), held_out, bfloat16=False)["kl"]


def same(student: Decoder, other: Decoder) -> bool:
    mine, theirs = student.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


@pytest.mark.parametrize("family", TRAINED)
def test_every_family_is_trained(family: str, tmp_path: Path) -> None:
    source = family_source(family)
    run = run_of(tmp_path, source)
    student = run.run()
    assert plan_of(student) == dict.fromkeys(dict(student.matrices()), 2) | PLAN
    assert kl(student, source) < kl(make_student(load_teacher(source), "absmax"), source)
    for layer in run.record["layers"]:
        assert layer["error"] <= layer["error_before"]
    assert run.record["scales"]["kl"] <= run.record["scales"]["kl_before"]
    run.close()
    assert not run.folder.exists()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("targets", block_run.TARGETS)
def test_a_killed_run_goes_on_with_the_same_result(
    targets: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first layer, and while scales learn; states in memory or on disk."""
    monkeypatch.setattr(streams, "has_room", lambda size, device: held)
    monkeypatch.setattr(block_run, "SAVE_SECONDS", 0.0)
    options = RunOptions(targets, OPTIONS.gradient_tokens, OPTIONS.blocks, OPTIONS.scales)
    expected = run_of(tmp_path / "whole", options=options)
    whole = expected.run()

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    trained = []
    train = block_run.train_layer

    def count(layer: Any, *rest: Any) -> tuple[float, float]:
        trained.append(layer)
        return train(layer, *rest)

    start_of = BlockRun._start_of
    dying_start = lambda run, i: die() if i else start_of(run, i)  # noqa: E731
    for owner, name, deadly in (
        (BlockRun, "_start_of", dying_start),
        (block_run, "train_scales", die),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(block_run, "train_layer", count)
            patch.setattr(owner, name, deadly)
            with pytest.raises(KeyboardInterrupt):
                run_of(tmp_path / "killed", options=options).run()
    assert len(trained) == 2
    again = run_of(tmp_path / "killed", options=options)
    assert same(again.run(), whole)
    kls = [run.record["scales"]["kl"] for run in (again, expected)]
    assert kls[0] == kls[1]
    errors = [[layer["error"] for layer in run.record["layers"]] for run in (again, expected)]
    assert errors[0] == errors[1]


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    run_of(tmp_path)
    run_of(tmp_path)
    with pytest.raises(EdgeDBError, match="other settings"):
        run_of(tmp_path, plan={})
    with pytest.raises(EdgeDBError, match="other settings"):
        run_of(tmp_path, options=RunOptions("layer", 64, OPTIONS.blocks, OPTIONS.scales))


def test_a_start_is_trained_instead_of_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TinySource()
    start = make_student(load_teacher(source), "least-squares", plan=PLAN)
    before = kl(start, source)
    monkeypatch.setattr(block_run, "fit_start", None)
    student = run_of(tmp_path, plan=plan_of(start), start=start).run()
    assert kl(student, source) < before


def test_tables_in_planes_are_fitted_to_what_the_head_reads(tmp_path: Path) -> None:
    source = TinySource(tied=False)
    student = run_of(tmp_path, source, plan=PLAN | {"embedding": 4, "head": 3}).run()
    assert plan_of(student)["head"] == 3
    for name, table in student.tables().items():
        off = table().detach() - torch.from_numpy(source.tensor(name))
        assert off.square().mean() < 0.1 * np.square(source.tensor(name)).mean()


def test_without_gradients_and_scales(tmp_path: Path) -> None:
    options = RunOptions(gradient_tokens=0, blocks=OPTIONS.blocks, scales=ScaleOptions(steps=0))
    run = run_of(tmp_path, options=options)
    run.run()
    assert run.record["scales"] == {} and not (run.folder / "channels.npy").exists()
    with pytest.raises(ValueError, match="choose one of"):
        RunOptions("nothing")
