"""Training, saving and resuming, with a model that trains in seconds."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TRAINED, TinySource, family_source  # noqa: E402
from training import OPTIONS, log_of, trainer  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.text.spec import TokenizerSpec  # noqa: E402
from tools.checkpoint import load_student  # noqa: E402
from tools.dad import LossOptions  # noqa: E402
from tools.decoder import load_teacher, mean_square_inputs  # noqa: E402
from tools.export_student import export  # noqa: E402
from tools.quality import evaluate  # noqa: E402
from tools.starts import moved  # noqa: E402
from tools.student import make_student  # noqa: E402
from tools.text import TextMix  # noqa: E402
from tools.trainer import Trainer  # noqa: E402


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
    state = torch.load(tmp_path / "state.pt")
    state["student"]["another.weight"] = state["student"].pop("final_norm")
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(EdgeDBError, match="another model or another edgedb"):
        trainer(text, tmp_path, short).resume()
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(EdgeDBError, match="no readable"):
        trainer(text, tmp_path, short).resume()


def test_nan_stops_with_a_message_and_keeps_the_state(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path)
    run.save()
    with torch.no_grad():
        run.student.final_norm.fill_(torch.nan)
    with pytest.raises(EdgeDBError, match="not finite"):
        run.train()
    again = trainer(text, tmp_path)
    again.resume()
    assert torch.isfinite(again.student.final_norm).all()


def test_scales_only_leaves_latents_alone(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path, replace(OPTIONS, mode="scales", steps=2))
    before = [m.latent.clone() for _, m in run.student.matrices()]
    scale = run.student.layers[0].mlp_down.alpha1.clone()
    run.train()
    assert all(
        torch.equal(a, m.latent) for a, (_, m) in zip(before, run.student.matrices(), strict=True)
    )
    assert not torch.equal(scale, run.student.layers[0].mlp_down.alpha1)


def test_latents_stay_in_a_tail_of_scales(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path, replace(OPTIONS, steps=4, latents_until=0.5))
    latents = [m.latent for _, m in run.student.matrices()]
    seen = []
    for _ in range(4):
        run._train_step()
        run.step += 1
        seen.append([latent.clone() for latent in latents])
    scale = run.student.layers[0].mlp_down.alpha1
    assert not any(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[3], strict=True))
    before = scale.clone()
    run._train_step()
    assert not torch.equal(scale, before)


def test_micro_batches_add_up(text: Path, tmp_path: Path) -> None:
    plain = replace(OPTIONS, loss=LossOptions(), steps=2, clip=1e9, stuck_tails=True)
    runs = [trainer(text, tmp_path / str(n), replace(plain, micro_batch=n)) for n in (2, 8)]
    first, second = (run._averaged(run._train_step()) for run in runs)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)


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


def test_schedule_by_time_ends_and_lengthens_the_text(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("tools.trainer.time.monotonic", lambda: float(next(ticks)))
    run = trainer(text, tmp_path, replace(OPTIONS, seconds=20, long_from=0.5, save_every=10**6))
    shapes = []
    batch = run.text.batch
    run.text.batch = lambda *args: shapes.append(args[1:]) or batch(*args)  # type: ignore
    run.train()
    assert 20 <= run.seconds < 25
    assert shapes[0] == (8, 32) and shapes[-1] == (4, 64)


def test_log_tells_sampled_from_real_text(text: Path, tmp_path: Path) -> None:
    """Rows of each kind are averaged apart; a step without one kind has no column for it."""
    only = {
        share: trainer(text, tmp_path / str(share), replace(OPTIONS, real_share=share))
        for share in (0.0, 0.5, 1.0)
    }
    found = {share: run._averaged(run._train_step()) for share, run in only.items()}
    assert "kl_real" not in found[0.0] and "kl_sampled" not in found[1.0]
    assert found[0.0]["kl_sampled"] == pytest.approx(found[0.0]["kl"], rel=1e-5)
    assert found[1.0]["kl_real"] == pytest.approx(found[1.0]["kl"], rel=1e-5)
    n_real = only[0.5].text.n_real_rows(0, OPTIONS.batch)
    mixed = found[0.5]
    whole = n_real * mixed["kl_real"] + (OPTIONS.batch - n_real) * mixed["kl_sampled"]
    assert whole / OPTIONS.batch == pytest.approx(mixed["kl"], rel=1e-5)


def test_tables_of_pairs_train_with_the_rest(text: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=30, lr_embedding=2e-3, log_every=10)
    teacher = load_teacher(TinySource())
    mix = TextMix(text, options.length, real_share=options.real_share)
    ids = torch.from_numpy(mix.batch(10**6, 4))
    student = moved(make_student(teacher, "least-squares"), {"embedding": 4}, ids)
    table = student.embedding
    before, scales = evaluate(student, teacher, ids, bfloat16=False), table.alphas.clone()
    Trainer(student, teacher, options, mix, tmp_path, validation={"mix": ids}).train()
    assert not torch.equal(scales, table.alphas)
    assert (table.alphas.abs() > 0).all()
    loaded, metadata = load_student(tmp_path / "student.safetensors")
    after = evaluate(loaded, teacher, ids, bfloat16=False)
    assert after["kl"] < 0.9 * before["kl"]
    recorded = json.loads(metadata["provenance"])["quality"]["mix"]
    assert recorded["kl"] == pytest.approx(after["kl"], abs=1e-4)


@pytest.mark.parametrize("planes", [3, 4])
def test_mixed_planes_train_together(text: Path, tmp_path: Path, planes: int) -> None:
    """A stack learns more slowly than a pair, and all of it is in the file."""
    options = replace(OPTIONS, steps=30, log_every=10, quantize_inputs=True)
    teacher = load_teacher(TinySource())
    mix = TextMix(text, options.length, real_share=options.real_share)
    ids = torch.from_numpy(mix.batch(10**6, 4))
    student = make_student(teacher, "least-squares", plan={"layers.0.mlp_gate_up": planes})
    stack, pair = student.layers[0].mlp_gate_up, student.layers[1].mlp_gate_up
    before = evaluate(student, teacher, ids, bfloat16=False)
    run = Trainer(student, teacher, options, mix, tmp_path, validation={"mix": ids})
    peaks = {id(p): group["peak"] for group in run.optimizer.param_groups for p in group["params"]}
    finer = {3: 0.5**0.5, 4: 0.5}[planes]
    assert peaks[id(stack.latent)] == peaks[id(pair.latent)] * finer == options.lr_latent * finer
    assert peaks[id(stack.alphas)] == peaks[id(pair.alpha1)] * finer == options.lr_scale * finer
    first = stack.latent.clone()
    run.train()
    assert not torch.equal(stack.latent, first) and stack.quantize_input
    assert (stack.alphas.abs() > 0).all()
    loaded, _ = load_student(tmp_path / "student.safetensors")
    after = evaluate(loaded, teacher, ids, bfloat16=False)
    assert after["kl"] < 0.9 * before["kl"]


def test_a_bad_loss_is_never_saved(text: Path, tmp_path: Path) -> None:
    """Saves do not fall on lines of the log here."""
    run = trainer(text, tmp_path, replace(OPTIONS, log_every=7, save_every=2))
    step = run._train_step

    def poisoned() -> dict:
        if run.step == 3:
            with torch.no_grad():
                run.student.final_norm.fill_(torch.nan)
        return step()

    run._train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(EdgeDBError, match="step 4: the loss is not finite"):
        run.train()
    again = trainer(text, tmp_path, replace(OPTIONS, log_every=7, save_every=2))
    assert again.resume() and again.step == 2
    assert torch.isfinite(again.student.final_norm).all()


def test_sigterm_saves_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    run = trainer(text, tmp_path)
    step = run._train_step

    def stopped() -> dict:
        if run.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step()

    run._train_step = stopped  # type: ignore[method-assign]
    run.train()
    again = trainer(text, tmp_path)
    assert again.resume() and again.step == run.step == 4


def test_a_log_line_cut_short_by_a_kill_is_dropped(text: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=4, save_every=2)
    trainer(text, tmp_path, short).train()
    log = tmp_path / "log.jsonl"
    whole = log_of(tmp_path)
    with log.open("a") as file:
        file.write('{"step": 5, "los')
    assert trainer(text, tmp_path, short).resume()
    assert log_of(tmp_path) == whole


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


@pytest.mark.parametrize("name", TRAINED)
def test_every_family_learns_and_runs_in_the_engine(
    text: Path, tmp_path: Path, tiny_spec: TokenizerSpec, name: str
) -> None:
    """FDB and DAD, with everything that its program has; a window shorter than the text."""
    import edgedb

    source = family_source(name, vocab_size=320)
    teacher = load_teacher(source)
    options = replace(OPTIONS, steps=40, lr_scale=1e-3, validate_every=100, save_every=100)
    mix = TextMix(text, options.length, real_share=options.real_share)
    held_out = torch.from_numpy(mix.batch(10**6, 4))
    student = make_student(teacher, "weighted", mean_square_inputs(teacher, held_out))
    before = evaluate(student, teacher, held_out, bfloat16=False)
    run = Trainer(student, teacher, options, mix, tmp_path, tokenizer=tiny_spec)
    run.train()
    after = evaluate(student, teacher, held_out, bfloat16=False)
    assert after["kl"] < 0.9 * before["kl"]
    theirs = dict(teacher.vectors())
    for vector, learned in student.vectors():
        assert not torch.equal(learned, theirs[vector]), vector

    loaded, _ = load_student(tmp_path / "student.safetensors")
    for mine, read in zip(student.vectors(), loaded.vectors(), strict=True):
        assert mine[0] == read[0] and torch.equal(mine[1], read[1])
    export(tmp_path / "student.safetensors", tmp_path / "student.dbb")
    for _, module in loaded.matrices():
        module.quantize_input = True  # as the engine does
    ids = held_out[0].tolist()
    expected = loaded.logits(torch.tensor([ids]))[0].detach().numpy()
    logits = edgedb.load(tmp_path / "student.dbb").logits(ids)
    # What is left: embedding and head in 8 bits, and the head's input.
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
