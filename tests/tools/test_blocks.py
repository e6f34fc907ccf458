"""The command that trains block by block, from a checkpoint to the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from checkpoints import CONFIG, write_hf  # noqa: E402

import edgedb  # noqa: E402
from edgedb.convert.sources import open_source  # noqa: E402
from edgedb.format.packing import dequantize  # noqa: E402
from edgedb.model.dbb import read_dbb  # noqa: E402
from tools import block_run, blocks  # noqa: E402
from tools.checkpoint import load_student  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.export import main as export  # noqa: E402
from tools.fixed import Fixed  # noqa: E402
from tools.quality import evaluate  # noqa: E402
from tools.student import make_student, plan_of  # noqa: E402

SMALL = ["--tokens", "512", "--length", "32", "--epochs", "3", "--gradient-tokens", "64",
         "--scale-steps", "2", "--scale-batch", "8", "--device", "cpu"]  # fmt: skip
PLAN = "1, layers.1=1.5, layers.0.mlp_down=2"


@pytest.fixture(scope="module")
def teacher(tiny_bpe: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_hf(folder, tokenizer_json=tiny_bpe)
    return folder


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "real-noise.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.integers(3, CONFIG["vocab_size"], 2000).astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def student(teacher: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "student.safetensors"
    command(str(teacher), str(out), "--text", str(ids), "--plan", PLAN, *SMALL)
    return out


def command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["blocks", *arguments])
        blocks.main()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as status:
        command(*arguments)
    assert status.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and len(lines) == 1, lines
    return lines[-1]


def test_a_student_has_the_plan_and_is_nearer_to_the_teacher(teacher: Path, student: Path) -> None:
    found, metadata = load_student(student)
    planes = {name: 2 + name.startswith("layers.1") for name, _ in found.matrices()}
    assert plan_of(found) == planes | {"layers.0.mlp_down": 4}
    facts = json.loads(metadata["provenance"])
    assert facts["text"] == "real-noise.npy" and facts["tokens"] == 512
    for layer in facts["layers"]:
        assert layer["error"] < layer["error_before"]
    assert facts["options"]["blocks"]["epochs"] == 3
    held_out = torch.from_numpy(np.random.default_rng(1).integers(3, 320, (8, 32)))
    whole = load_teacher(open_source(teacher))
    untrained = make_student(whole, "least-squares", plan=plan_of(found))
    mine, its = (evaluate(s, whole, held_out, bfloat16=False)["kl"] for s in (found, untrained))
    assert mine < its
    assert not student.with_name(student.name + ".blocks").exists()


def test_the_engine_has_the_students_own_logits(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.dbb"
    export.main([str(student), str(out)], standalone_mode=False)
    trained, _ = load_student(student)
    file = read_dbb(out)
    for name, module in trained.matrices():
        assert np.array_equal(dequantize(file.linears[name]), module.weight().detach().numpy())
        module.quantize_input = True
    tokens = [3, 14, 15, 92, 65, 35]
    expected = trained.logits(torch.tensor([tokens]))[0].detach().numpy()
    logits = edgedb.load(out).logits(tokens)
    # What is left: embedding and head in 8 bits, and the head's input.
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["safetensors", "dbb"])
def test_it_goes_on_from_a_student_or_a_model(
    kind: str, teacher: Path, ids: Path, student: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    start = student
    if kind == "dbb":
        start = tmp_path / "start.dbb"
        export.main([str(student), str(start)], standalone_mode=False)
    monkeypatch.setattr(block_run, "fit_start", None)  # nothing is fitted
    out = tmp_path / "again.safetensors"
    command(str(teacher), str(out), "--text", str(ids), "--start", str(start), *SMALL)
    again, metadata = load_student(out)
    assert plan_of(again) == plan_of(load_student(student)[0])
    assert json.loads(metadata["provenance"])["start"] == start.name


def test_without_epochs_scales_learn_and_planes_stay(
    teacher: Path, ids: Path, student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scales.safetensors"
    command(str(teacher), str(out), "--text", str(ids), "--start", str(student), *SMALL,
            "--epochs", "0", "--scale-steps", "4")  # fmt: skip
    before, after = (dict(load_student(path)[0].matrices()) for path in (student, out))
    for name, module in after.items():
        old, new = before[name].weight().detach(), module.weight().detach()
        assert not torch.equal(old, new), name
        for was, now in zip(Fixed(before[name])._planes(), Fixed(module)._planes(), strict=True):
            assert torch.equal(was, now), name


def test_a_checkpoint_becomes_a_model_by_one_command(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "model.dbb"
    text.write_text("The capital of France is Paris. " * 400)
    small = blocks.options_of(blocks.settings(SMALL))
    monkeypatch.setattr(blocks, "options_of", lambda args: small)
    monkeypatch.setattr(blocks, "default_device", lambda: "cpu")
    given = ["--train", "blocks", "--calibration", str(text), "--calibration-tokens", "512"]
    given += ["--pairs", "1", "--plan", "layers.1=2"]
    export.main([str(teacher), str(out), *given], standalone_mode=False)
    found = read_dbb(out)
    planes = {name: t.planes for name, t in found.linears.items() if name.startswith("layers.")}
    assert planes == {name: 4 if name.startswith("layers.1") else 2 for name in planes}
    assert found.quantization["method"] == "FDB, trained"
    assert found.quantization["provenance"]["tokens"] == 512


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--calibration FILE"),
        (["--method", "rtn"], "no use for it"),
        (["--bits", "3"], "--bits"),
    ],
)
def test_what_training_has_no_use_for_is_refused(
    options: list[str], said: str, teacher: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        export.main(
            [str(teacher), str(tmp_path / "out.dbb"), "--train", "blocks", *options],
            standalone_mode=False,
        )
    line = capsys.readouterr().err.strip()
    assert said in line and "\n" not in line


def test_bad_arguments_are_one_line(
    teacher: Path, ids: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = str(tmp_path / "out.safetensors"), ["--text", str(ids), *SMALL]
    assert "epochs" in refused(capsys, str(teacher), out, *given, "--epochs", "-1")
    assert "scale-steps" in refused(capsys, str(teacher), out, *given, "--scale-steps", "-1")
    assert "lr-latent" in refused(capsys, str(teacher), out, *given, "--lr-latent", "nan")
    assert "pairs" in refused(capsys, str(teacher), out, *given, "--plan", "0.5")
    assert "layers.9" in refused(capsys, str(teacher), out, *given, "--plan", "layers.9=2")
    line = refused(capsys, str(teacher), out, *given, "--start", str(student), "--plan", "3")
    assert "the start has" in line
    line = refused(capsys, str(teacher), out, *given, "--start", str(tmp_path / "none.safetensors"))
    assert "none.safetensors" in line
    assert "no-such" in refused(capsys, str(tmp_path / "no-such"), out, *given)
    line = refused(capsys, str(teacher), out, "--text", str(tmp_path / "none.txt"), *SMALL)
    assert "none.txt" in line
    few = tmp_path / "few.npy"
    np.save(few, np.arange(3, 13))
    assert "too few" in refused(capsys, str(teacher), out, "--text", str(few), *SMALL)
    np.save(few, np.arange(10) + 1000)
    assert "0 to 319" in refused(capsys, str(teacher), out, "--text", str(few), *SMALL)
    line = refused(capsys, str(teacher), str(tmp_path / "no/out.safetensors"), *given)
    assert "no folder" in line
    assert not list(tmp_path.glob("out*"))
