"""Two gloo processes learn what one does: a copy each (DDP), or the models in pieces (FSDP2)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from training import OPTIONS, log_of, trainer  # noqa: E402

from tools.checkpoint import load_student  # noqa: E402
from tools.dad import LossOptions  # noqa: E402

# Losses are sums over other groups of tokens than with one process: equal up to rounding. The
# straight-through gradient of tails depends on signs of tiny numbers, so it is left out.
PLAIN = replace(OPTIONS, stuck_tails=True, loss=LossOptions(), steps=4, save_every=2)

WORKER = """
import sys
from pathlib import Path
import torch
from tiny import TinySource
from dataclasses import replace
from test_parallel import PLAIN
from tools import parallel
from tools.decoder import load_teacher
from tools.student import make_student
from tools.starts import moved
from tools.text import TextMix
from tools.trainer import Trainer

text, out, mode, steps, planes = (*map(Path, sys.argv[1:3]), sys.argv[3], *map(int, sys.argv[4:]))
mode, _, narrow = mode.partition("-")
parallel.start(torch.device("cpu"))
sharded = parallel.is_sharded(mode, TinySource().config, torch.device("cpu"))
assert sharded == (mode == "fsdp")
teacher = load_teacher(TinySource(), sharded=sharded)
student = make_student(teacher, "least-squares", sharded=sharded)
mix = TextMix(text, PLAIN.length, real_share=PLAIN.real_share, seed=PLAIN.seed)
if planes:
    ids = torch.from_numpy(mix.batch(0, 2))
    student = moved(student, {"embedding": planes}, ids, sharded=sharded)
if sharded:
    pieces = student.layers[0].mlp_down.latent
    assert pieces.to_local().shape[0] < pieces.shape[0]
validation = {"mix": torch.from_numpy(mix.batch(10**6, 4))}
options = replace(PLAIN, bfloat16_gradients=bool(narrow))
run = Trainer(student, teacher, options, mix, out, validation=validation)
run.resume()
if steps < PLAIN.steps:  # is killed
    step = run._train_step
    def die():
        if run.step == steps:
            sys.exit(9)
        return step()
    run._train_step = die
run.train()
torch.distributed.destroy_process_group()
"""


def processes(tmp_path: Path, text: Path, out: str, mode: str, steps: int = 4, planes: int = 0):
    """Run the worker twice at once; the completed process."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "worker.py"), str(text), str(tmp_path / out), mode]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests/tools", ROOT / "tests", ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*command, str(steps), str(planes)], env=environment, timeout=240, capture_output=True
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    np.save(folder / "real-noise.npy", rng.integers(0, 96, 500).astype(np.uint16))
    np.save(folder / "sampled-0.npy", rng.integers(0, 96, (32, 24)).astype(np.uint16))
    return folder


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(text: Path, tmp_path: Path, mode: str) -> None:
    done = processes(tmp_path, text, "two", mode)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    trainer(text, tmp_path / "one", PLAIN).train()
    one, two = (log_of(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["kl"] == pytest.approx(theirs["kl"], rel=1e-3)
        assert mine.keys() == theirs.keys()
    for name in ("kl_sampled", "kl_real"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4)


def test_gradients_in_bfloat16_are_rounded_and_no_more(text: Path, tmp_path: Path) -> None:
    for mode in ("ddp", "ddp-bfloat16"):
        done = processes(tmp_path, text, mode, mode)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    whole, rounded = (log_of(tmp_path / mode) for mode in ("ddp", "ddp-bfloat16"))
    assert whole != rounded
    for mine, theirs in zip(rounded, whole, strict=True):
        assert mine["kl"] == pytest.approx(theirs["kl"], rel=0.02)


def test_pieces_resume_exactly(text: Path, tmp_path: Path) -> None:
    """Killed after step 3, taken up from the state of step 2; tables of three planes among it."""
    done = processes(tmp_path, text, "whole", "fsdp", planes=3)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert processes(tmp_path, text, "killed", "fsdp", steps=3, planes=3).returncode != 0
    done = processes(tmp_path, text, "killed", "fsdp", planes=3)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    mine, theirs = (
        load_student(tmp_path / name / "student.safetensors")[0].state_dict()
        for name in ("killed", "whole")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
