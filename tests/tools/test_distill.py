"""The command that trains: its options, and the student that it starts with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402
from training import OPTIONS, trainer  # noqa: E402

import edgedb  # noqa: E402
from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.model.dbb import read_dbb  # noqa: E402
from edgedb.text.spec import TokenizerSpec  # noqa: E402
from tools import export_student  # noqa: E402
from tools.checkpoint import save_student  # noqa: E402
from tools.decoder import Decoder, load_teacher  # noqa: E402
from tools.distill import build_parser, first_student  # noqa: E402
from tools.student import plan_of  # noqa: E402
from tools.text import TextMix  # noqa: E402
from tools.trainer import Trainer  # noqa: E402


def test_a_student_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, steps=1, warmup=0)
    trainer(text, tmp_path, short).train()
    flags = ["m", "--text", "t", "--out", "o", "--steps", "5", "--student"]
    args = build_parser().parse_args([*flags, str(tmp_path / "student.safetensors")])
    other = load_teacher(TinySource(vocab_size=320))
    with pytest.raises(EdgeDBError, match="another model"):
        first_student(args, other, TextMix(text, 8, real_share=0.5), sharded=False)


def starting_with(*flags: str, teacher: Decoder, text: Path) -> Decoder:
    args = build_parser().parse_args(
        ["m", "--text", "t", "--out", "o", "--steps", "5", "--start", "least-squares", *flags]
    )
    mix = TextMix(text, 8, real_share=0.5)
    return first_student(args, teacher, mix, sharded=False)


def test_a_plan_is_asked_for_kept_and_changed(text: Path, tmp_path: Path) -> None:
    teacher = load_teacher(TinySource())
    student = starting_with("--pairs", "layers.1=1.5", teacher=teacher, text=text)
    expected = {name: 2 + name.startswith("layers.1") for name, _ in student.matrices()}
    assert plan_of(student) == expected
    path = tmp_path / "student.safetensors"
    save_student(path, student, step=1, provenance={})
    given = ("--student", str(path))
    assert plan_of(starting_with(*given, teacher=teacher, text=text)) == expected
    again = starting_with(*given, "--pairs", "embedding=2", teacher=teacher, text=text)
    assert plan_of(again) == expected | {"embedding": 4}
    save_student(path, again, step=1, provenance={})
    other = "embedding=1.5, layers.0.mlp_down=2, layers.1.attn_out=1"
    again = starting_with(*given, "--pairs", other, teacher=teacher, text=text)
    changed = {"embedding": 3, "layers.0.mlp_down": 4, "layers.1.attn_out": 2}
    assert plan_of(again) == expected | changed
    for name, module in again.matrices():
        same = torch.equal(module.weight(), dict(student.matrices())[name].weight())
        assert same == (name not in changed), name


def test_a_run_of_odd_planes_is_exported_and_loads(
    text: Path, tmp_path: Path, tiny_spec: TokenizerSpec
) -> None:
    teacher = load_teacher(TinySource(vocab_size=320))
    student = starting_with("--pairs", "1.5,embedding=1.5", teacher=teacher, text=text)
    options = replace(OPTIONS, steps=3, lr_embedding=1e-3, compile=False)
    mix = TextMix(text, options.length, real_share=options.real_share)
    run = Trainer(student, teacher, options, mix, tmp_path / "run", tokenizer=tiny_spec)
    before = [p.clone() for p in student.parameters()]
    run.train()
    assert not any(map(torch.equal, before, student.parameters()))
    export_student.export(tmp_path / "run/student.safetensors", tmp_path / "m.dbb")
    model = edgedb.load(tmp_path / "m.dbb", backend="numpy")
    kinds = {tensor.kind for tensor in read_dbb(tmp_path / "m.dbb").linears.values()}
    assert kinds == {3}
    ids = [5, 17, 80, 3]
    expected = student.logits(torch.tensor([ids]))[0].detach().numpy()
    assert np.abs(model.logits(ids) - expected).max() < 0.05 * np.abs(expected).max()


def test_a_teacher_that_is_no_llama_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    command = [sys.executable, "-m", "tools.distill", str(tmp_path), "--text", str(tmp_path)]
    command += ["--out", str(tmp_path / "out"), "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "mamba" in done.stderr


def test_every_option_is_on_the_command_line() -> None:
    args = build_parser().parse_args(
        ["m.gguf", "--text", "t", "--out", "o", "--steps", "5", "--gamma", "0.1", "--compile"]
    )
    assert (args.gamma, args.compile, args.lr_latent) == (0.1, True, 1e-3)
