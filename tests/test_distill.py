"""Sampling, training, resuming and exporting, with a model that trains in seconds."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgedb-llm[train]'")

from tiny import TinySource  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools.checkpoint import load_student  # noqa: E402
from tools.dad import LossOptions  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.distill import Trainer, build_parser  # noqa: E402
from tools.generate import SAMPLED, Sampler, SamplingPlan, Scripts, generate  # noqa: E402
from tools.options import TrainOptions, schedule  # noqa: E402
from tools.quality import evaluate  # noqa: E402
from tools.student import make_student  # noqa: E402
from tools.text import TextMix  # noqa: E402

OPTIONS = TrainOptions(
    steps=12, batch=8, micro_batch=4, length=32, lr_latent=5e-3, lr_scale=2e-3, lr_embedding=1e-4,
    warmup=2, real_share=0.5, validate_every=6, save_every=5, log_every=1,
    loss=LossOptions(gamma=0.1, plain_share=0.5, chunk=64),
)  # fmt: skip
PLAN = SamplingPlan(sequences=16, length=24)
SCRIPTS = Scripts(chat_starts=((1, 5, 6), (1, 7)), next_turn=(8, 9), answer_turn=(10,), end_id=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Two shards of sampled text, and one real stream."""
    folder = tmp_path_factory.mktemp("text")
    generate(load_teacher(TinySource()), SCRIPTS, PLAN, folder, shards=2)
    rng = np.random.default_rng(0)
    np.save(folder / "real-noise.npy", rng.integers(0, 96, 500).astype(np.uint16))
    return folder


def trainer(text: Path, out: Path, options: TrainOptions = OPTIONS) -> Trainer:
    teacher = load_teacher(TinySource())
    mix = TextMix(text, options.length, real_share=options.real_share, seed=options.seed)
    held_out = torch.from_numpy(mix.batch(10**6, 4))
    student = make_student(teacher, "least-squares")
    return Trainer(student, teacher, options, mix, out, validation={"mix": held_out})


def log_of(out: Path) -> list[dict]:
    drop = ("seconds", "tokens_per_second")
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


def test_training_lowers_kl_and_keeps_the_order_of_levels(text: Path, tmp_path: Path) -> None:
    longer = replace(OPTIONS, steps=60, batch=16, micro_batch=16, lr_latent=3e-3, log_every=20)
    run = trainer(text, tmp_path, longer)
    before = evaluate(run.student, run.teacher, run.validation["mix"], bfloat16=False)
    run.train()
    after = [line for line in log_of(tmp_path) if "validation" in line][-1]
    assert after["kl"] < 0.8 * before["kl"]
    for _, module in run.student.matrices():
        assert (module.alpha1 * module.alpha2 < 0).all()
    loaded, metadata = load_student(tmp_path / "student.safetensors")
    assert metadata["step"] == "60"
    again = evaluate(loaded, run.teacher, run.validation["mix"], bfloat16=False)
    assert again["kl"] == pytest.approx(after["kl"], abs=1e-4)


def test_resume_is_exact(text: Path, tmp_path: Path) -> None:
    whole = trainer(text, tmp_path / "whole")
    whole.train()
    # A run that is killed at step 9, after the state of step 5 was saved.
    killed = trainer(text, tmp_path / "killed")
    killed.options = replace(OPTIONS, save_every=5)
    step = killed._train_step

    def die() -> dict:
        if killed.step == 9:
            raise KeyboardInterrupt
        return step()

    killed._train_step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(text, tmp_path / "killed")
    assert resumed.resume() and resumed.step == 5
    resumed.train()
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    for mine, theirs in zip(
        whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_resume_refuses_other_settings_and_damage(text: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=1, warmup=0)
    trainer(text, tmp_path, short).train()
    with pytest.raises(EdgeDBError, match="other settings"):
        trainer(text, tmp_path, replace(short, lr_latent=1.0)).resume()
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(EdgeDBError, match="no readable"):
        trainer(text, tmp_path, short).resume()


def test_nan_stops_with_a_message_and_keeps_the_state(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path)
    run.save()
    with torch.no_grad():
        run.student.final_norm.weight.fill_(torch.nan)
    with pytest.raises(EdgeDBError, match="not finite"):
        run.train()
    again = trainer(text, tmp_path)
    again.resume()
    assert torch.isfinite(again.student.final_norm.weight).all()


def test_scales_only_leaves_latents_alone(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path, replace(OPTIONS, mode="scales", steps=2))
    before = [m.latent.clone() for _, m in run.student.matrices()]
    scale = run.student.layers[0].mlp_down.alpha1.clone()
    run.train()
    assert all(
        torch.equal(a, m.latent) for a, (_, m) in zip(before, run.student.matrices(), strict=True)
    )
    assert not torch.equal(scale, run.student.layers[0].mlp_down.alpha1)


def test_micro_batches_add_up(text: Path, tmp_path: Path) -> None:
    plain = replace(OPTIONS, loss=LossOptions(), steps=2, clip=1e9, stuck_tails=True)
    runs = [trainer(text, tmp_path / str(n), replace(plain, micro_batch=n)) for n in (2, 8)]
    first, second = (run._train_step() for run in runs)
    assert first["loss"].item() == pytest.approx(second["loss"].item(), rel=1e-5)
    assert first["grad_norm"].item() == pytest.approx(second["grad_norm"].item(), rel=1e-4)


def test_compiled_student_learns_the_same(text: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    losses = []
    for compiled in (False, True):
        run = trainer(text, tmp_path / str(compiled), replace(OPTIONS, compile=compiled))
        try:
            losses.append([run._train_step()["loss"].item() for _ in range(1)])
        except Exception as error:
            if compiled and "compiler" in str(error).lower():
                pytest.skip("torch.compile finds no C++ compiler")
            raise
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_schedule() -> None:
    options = TrainOptions(steps=100, warmup=10, final_share=0.1)
    assert schedule(0, 0, options) == pytest.approx(0.1)
    assert schedule(9, 0, options) == 1
    assert schedule(99, 1, options) == pytest.approx(0.1)
    later = replace(options, first_step=50)
    assert schedule(50, 0.5, later) == pytest.approx(schedule(50, 0.5, options) / 10)
    assert schedule(70, 0.7, later) == schedule(70, 0.7, options)


def test_schedule_by_time_ends_and_lengthens_the_text(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("tools.distill.time.monotonic", lambda: float(next(ticks)))
    run = trainer(text, tmp_path, replace(OPTIONS, seconds=20, long_from=0.5, save_every=10**6))
    shapes = []
    batch = run.text.batch
    run.text.batch = lambda *args: shapes.append(args[1:]) or batch(*args)  # type: ignore
    run.train()
    assert 20 <= run.seconds < 25
    assert shapes[0] == (8, 32) and shapes[-1] == (4, 64)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from test_distill import OPTIONS, replace, trainer
from tools.dad import LossOptions
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
options = replace(OPTIONS, stuck_tails=True, loss=LossOptions(), steps=4)
trainer(Path(sys.argv[1]), Path(sys.argv[2]), options).train()
torch.distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_does(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "run.py"), str(text), str(tmp_path / "two")]
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True)
    options = replace(OPTIONS, stuck_tails=True, loss=LossOptions(), steps=4)
    trainer(text, tmp_path / "one", options).train()
    one, two = (
        [line["kl"] for line in log_of(tmp_path / name) if "validation" in line]
        for name in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-3)


def test_batches_depend_on_the_step_alone(text: Path) -> None:
    one, two = (TextMix(text, 32, real_share=0.5, seed=3) for _ in range(2))
    one.batch(0, 8)
    assert np.array_equal(one.batch(5, 8), two.batch(5, 8))
    assert not np.array_equal(one.batch(5, 8), one.batch(6, 8))


def test_an_epoch_of_sampled_text_repeats_nothing(text: Path) -> None:
    mix = TextMix(text, 24, real_share=0)
    rows = np.concatenate([mix.batch(step, 8) for step in range(4)])
    everything = np.concatenate([np.load(p) for p in sorted(text.glob("sampled-*.npy"))])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, everything.astype(np.int64)))


def test_text_of_another_tokenizer_is_refused(text: Path) -> None:
    mix = TextMix(text, 8, real_share=0.5)
    mix.check(96)
    with pytest.raises(EdgeDBError, match="another tokenizer"):
        mix.check(50)


def test_full_disk_leaves_the_last_state(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(text, tmp_path)
    run.save()
    before = (tmp_path / "state.pt").read_bytes()

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half a state")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(EdgeDBError, match="No space left"):
        run.save()
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="sampled"):
        TextMix(tmp_path, 8, real_share=0)
    with pytest.raises(EdgeDBError, match="real"):
        TextMix(tmp_path, 8, real_share=1)


def test_sampled_text_follows_its_script() -> None:
    ids = Sampler(load_teacher(TinySource()), PLAN, torch.float32).sample(SCRIPTS, 0)
    assert ids.shape == (16, 24) and ids.min() >= 0 and ids.max() < 96
    chat = ids[:8]
    assert {tuple(row[:2]) for row in chat} <= {(1, 5), (1, 7)}
    for row in chat:
        turns = 0
        places = np.flatnonzero(row == SCRIPTS.end_id)
        for place in places[places > 3]:
            if place + 2 < len(row):
                follows = (SCRIPTS.answer_turn, SCRIPTS.next_turn)[turns % 2]
                assert tuple(row[place + 1 : place + 1 + len(follows)]) == follows
                turns += 1
    assert SAMPLED not in ids


def test_sampler_follows_the_decoders_distribution() -> None:
    """Greedy (a temperature near zero) continuations are the decoder's own."""
    teacher = load_teacher(TinySource())
    plan = SamplingPlan(sequences=4, length=20, temperatures=(1e-6,), chat_share=0)
    ids = torch.from_numpy(Sampler(teacher, plan, torch.float32).sample(Scripts(), 1))
    assert torch.equal(teacher.logits(ids).argmax(-1)[:, :-1], ids[:, 1:])


def test_generate_resumes_and_refuses_another_plan(tmp_path: Path) -> None:
    teacher = load_teacher(TinySource())
    generate(teacher, SCRIPTS, PLAN, tmp_path, shards=2)
    first = (tmp_path / "sampled-0001.npy").read_bytes()
    (tmp_path / "sampled-0001.npy").unlink()
    generate(teacher, SCRIPTS, PLAN, tmp_path, shards=2)
    assert (tmp_path / "sampled-0001.npy").read_bytes() == first
    with pytest.raises(EdgeDBError, match="other settings"):
        generate(teacher, SCRIPTS, replace(PLAN, seed=1), tmp_path, shards=3)


def test_every_option_is_on_the_command_line() -> None:
    args = build_parser().parse_args(
        ["m.gguf", "--text", "t", "--out", "o", "--steps", "5", "--gamma", "0.1", "--compile"]
    )
    assert (args.gamma, args.compile, args.lr_latent) == (0.1, True, 1e-3)
