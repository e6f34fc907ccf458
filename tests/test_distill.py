"""Sampling, training, resuming and exporting, with a model that trains in seconds."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgedb-llm[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools.checkpoint import load_student  # noqa: E402
from tools.dad import LossOptions  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.distill import build_parser, first_student  # noqa: E402
from tools.generate import SAMPLED, Sampler, SamplingPlan, Scripts, generate  # noqa: E402
from tools.generate import main as sample_text  # noqa: E402
from tools.options import TrainOptions, schedule  # noqa: E402
from tools.quality import evaluate, read_windows  # noqa: E402
from tools.student import make_student  # noqa: E402
from tools.tables import paired_tables  # noqa: E402
from tools.text import TextMix  # noqa: E402
from tools.trainer import Trainer  # noqa: E402

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
    monkeypatch.setattr("tools.trainer.time.monotonic", lambda: float(next(ticks)))
    run = trainer(text, tmp_path, replace(OPTIONS, seconds=20, long_from=0.5, save_every=10**6))
    shapes = []
    batch = run.text.batch
    run.text.batch = lambda *args: shapes.append(args[1:]) or batch(*args)  # type: ignore
    run.train()
    assert 20 <= run.seconds < 25
    assert shapes[0] == (8, 32) and shapes[-1] == (4, 64)


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
    student = paired_tables(make_student(teacher, "least-squares"), 2, ids)
    table = student.embedding
    before, scales = evaluate(student, teacher, ids, bfloat16=False), table.alphas.clone()
    Trainer(student, teacher, options, mix, tmp_path, validation={"mix": ids}).train()
    assert not torch.equal(scales, table.alphas)
    assert (table.alphas * table.sign > 0).all()
    loaded, metadata = load_student(tmp_path / "student.safetensors")
    after = evaluate(loaded, teacher, ids, bfloat16=False)
    assert after["kl"] < 0.9 * before["kl"]
    recorded = json.loads(metadata["provenance"])["quality"]["mix"]
    assert recorded["kl"] == pytest.approx(after["kl"], abs=1e-4)


def test_shards_of_other_lengths_are_joined(tmp_path: Path) -> None:
    ids = np.arange(16 * 8, dtype=np.uint16)
    np.save(tmp_path / "sampled-a.npy", ids[:64].reshape(16, 4))
    np.save(tmp_path / "sampled-b.npy", ids[64:].reshape(8, 8))
    mix = TextMix(tmp_path, 8, real_share=0)
    assert sorted(mix.batch(0, 16).ravel()) == list(range(128))
    np.save(tmp_path / "sampled-c.npy", ids[:30].reshape(10, 3))
    with pytest.raises(EdgeDBError, match="do not mix"):
        TextMix(tmp_path, 8, real_share=0)


def test_validation_texts_are_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.arange(12, dtype=np.uint16).reshape(3, 4))
    found = read_windows([good], vocab_size=12)
    assert found["good"].dtype == torch.int64 and found["good"].shape == (3, 4)
    with pytest.raises(EdgeDBError, match=r"good\.npy: .* from 0 to 10"):
        read_windows([good], vocab_size=11)
    for array in (
        np.arange(4),
        np.zeros((2, 3), np.float32),
        np.array([[{}]]),
        np.zeros((0, 4), int),
    ):
        np.save(bad, array)
        with pytest.raises(EdgeDBError, match=r"bad\.npy"):
            read_windows([bad], vocab_size=12)
    for content in (b"", b"no array", good.read_bytes()[:-3]):
        bad.write_bytes(content)
        with pytest.raises(EdgeDBError, match=r"bad\.npy"):
            read_windows([bad], vocab_size=12)


def test_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "sampled-a.npy", np.arange(64, dtype=np.uint16).reshape(8, 8))
    for name, array in (("sampled-b", np.arange(8)), ("real-a", np.zeros((2, 3), int))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(EdgeDBError, match=rf"{name}\.npy: expected token ids"):
            TextMix(tmp_path, 8, real_share=0)
        (tmp_path / f"{name}.npy").write_bytes(b"cut short")
        with pytest.raises(EdgeDBError, match=rf"{name}\.npy: cannot be read"):
            TextMix(tmp_path, 8, real_share=0)
        (tmp_path / f"{name}.npy").unlink()


def test_a_bad_loss_is_never_saved(text: Path, tmp_path: Path) -> None:
    """Saves do not fall on lines of the log here."""
    run = trainer(text, tmp_path, replace(OPTIONS, log_every=7, save_every=2))
    step = run._train_step

    def poisoned() -> dict:
        if run.step == 3:
            with torch.no_grad():
                run.student.final_norm.weight.fill_(torch.nan)
        return step()

    run._train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(EdgeDBError, match="step 4: the loss is not finite"):
        run.train()
    again = trainer(text, tmp_path, replace(OPTIONS, log_every=7, save_every=2))
    assert again.resume() and again.step == 2
    assert torch.isfinite(again.student.final_norm.weight).all()


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


def test_a_batch_that_does_not_split_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        replace(OPTIONS, micro_batch=3)


def test_a_student_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=1, warmup=0)
    trainer(text, tmp_path, short).train()
    flags = ["m", "--text", "t", "--out", "o", "--steps", "5", "--student"]
    args = build_parser().parse_args([*flags, str(tmp_path / "student.safetensors")])
    other = load_teacher(TinySource(vocab_size=320))
    with pytest.raises(EdgeDBError, match="another model"):
        first_student(args, other, TextMix(text, 8, real_share=0.5), sharded=False)


def test_a_teacher_that_is_no_llama_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    command = [sys.executable, "-m", "tools.distill", str(tmp_path), "--text", str(tmp_path)]
    command += ["--out", str(tmp_path / "out"), "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "mamba" in done.stderr


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


def test_questions_have_their_own_temperature() -> None:
    """Near zero for questions: from one start always the same one, and then answers that differ."""
    one_start = replace(SCRIPTS, chat_starts=((1, 5, 6),), end_id=0)
    plan = replace(PLAN, temperatures=(3.0,), question_temperature=1e-6, chat_share=1.0, length=64)
    ids = Sampler(load_teacher(TinySource()), plan, torch.float32).sample(one_start, 0)
    ends = [int(np.argmax(row == 0)) or len(row) for row in ids]
    assert len({tuple(row[: ends[0]]) for row in ids}) == 1
    answers_too = replace(plan, question_temperature=None)
    ids = Sampler(load_teacher(TinySource()), answers_too, torch.float32).sample(one_start, 0)
    assert len({tuple(row[:8]) for row in ids}) > 1


def test_a_student_samples_text_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "text"
    options = ["--shards", "1", "--sequences", "4", "--length", "16", "--question-temperature", "1"]
    monkeypatch.setattr(sys, "argv", ["generate", str(tiny_model), str(out), *options])
    sample_text()
    assert np.load(out / "sampled-0000.npy").shape == (4, 16)
    assert json.loads((out / "sampled.json").read_text())["question_temperature"] == 1


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
