"""The FDB student: planes, gradients, starts, constraints, and what leaves it for a ``.dbb``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from tiny import TinySource  # noqa: E402

from edgedb.errors import EdgeDBError, FormatError  # noqa: E402
from tools import checkpoint, export_student  # noqa: E402
from tools.codes import fake_int8  # noqa: E402
from tools.decoder import Decoder, load_teacher, mean_square_inputs  # noqa: E402
from tools.student import (  # noqa: E402
    STARTS,
    FDBLinear,
    fit_scales,
    make_student,
    planes,
    project,
    scale_codes,
)


def random_linear(rows: int = 5, cols: int = 100, seed: int = 0) -> FDBLinear:
    torch.manual_seed(seed)
    weight = torch.randn(rows, cols) + 0.3
    module = FDBLinear(rows, cols)
    module.load(weight, *fit_scales(weight))
    return module


def student_of(source: TinySource) -> Decoder:
    teacher = load_teacher(source)
    torch.manual_seed(0)
    ids = torch.randint(0, source.config.vocab_size, (2, 16))
    return make_student(teacher, "weighted", mean_square_inputs(teacher, ids))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_planes_are_the_nearest_level(sign: float) -> None:
    torch.manual_seed(0)
    w = torch.randn(50, 3, 64)
    alpha1 = sign * torch.rand(50, 3, 1).add(0.5)
    alpha2 = -alpha1 * torch.empty(50, 3, 1).uniform_(0.05, 0.95)
    b1, b2 = planes(w, alpha1, alpha2)
    chosen = alpha1 * b1 + alpha2 * b2
    levels = torch.stack([0 * alpha1, alpha1, alpha2, alpha1 + alpha2])
    nearest = (w - levels).abs().min(0).values
    torch.testing.assert_close((w - chosen).abs(), nearest)


def test_gradients_are_the_papers() -> None:
    module = random_linear()
    grad = torch.randn(module.rows, module.cols)
    module.weight().backward(grad)
    unit, c1, c2 = module.codes()
    b1, b2 = planes(module.latent, unit * c1, unit * c2)
    padded = torch.nn.functional.pad(grad, (0, 28)).unflatten(1, (2, 64))
    torch.testing.assert_close(module.alpha1.grad, (padded * b1).sum(-1, keepdim=True))
    torch.testing.assert_close(module.alpha2.grad, (padded * b2).sum(-1, keepdim=True))
    low, high = torch.minimum(unit * c1, unit * c2), torch.maximum(unit * c1, unit * c2)
    inside = (module.latent >= low) & (module.latent <= high)
    assert torch.equal(module.latent.grad[inside], padded[inside])
    # Outside the grid only what leads back in: a step is against the gradient.
    outside = torch.where(module.latent > high, padded.clamp_min(0), padded.clamp_max(0))
    assert torch.equal(module.latent.grad[~inside], outside[~inside])


def test_stuck_tails_get_nothing() -> None:
    module = random_linear()
    module.stuck = True
    module.weight().sum().backward()
    unit, c1, c2 = module.codes()
    low, high = torch.minimum(unit * c1, unit * c2), torch.maximum(unit * c1, unit * c2)
    outside = (module.latent < low) | (module.latent > high)
    assert outside.any() and not module.latent.grad[outside].any()


def test_project_restores_order_and_sign() -> None:
    module = random_linear(rows=64)
    with torch.no_grad():
        module.alpha1.add_(torch.randn_like(module.alpha1))
        module.alpha2.add_(torch.randn_like(module.alpha2))
    project([module])
    assert (module.alpha1 * module.sign > 0).all()
    assert (module.alpha1 * module.alpha2 < 0).all()
    assert (module.alpha1.abs() > module.alpha2.abs()).all()


def test_least_squares_beats_absmax_and_reaches_the_known_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 2048)

    def error(start: str) -> float:
        module = FDBLinear(64, 2048)
        module.load(weight, *fit_scales(weight, start=start))
        module.round_scales = False
        return ((module.weight() - weight).square().mean() / weight.square().mean()).item()

    assert error("absmax") > 0.15
    assert error("least-squares") < 0.118  # 0.1130 with free sign, from many more samples


def test_importance_moves_the_error_to_quiet_columns() -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(32, 64), torch.rand(64) ** 4

    def weighted_error(scales: tuple) -> float:
        module = FDBLinear(32, 64)
        module.load(weight, *scales)
        return ((module.weight() - weight).square() * importance).sum().item()

    assert weighted_error(fit_scales(weight, importance)) < weighted_error(fit_scales(weight))


def test_codes_fit_the_format() -> None:
    unit, c1, c2 = scale_codes(torch.tensor([[[2.0], [-1e-9]]]), torch.tensor([[[-1.9], [5e-10]]]))
    assert c1.flatten().tolist() == [127, 0]
    assert (c1 + c2).abs().max() <= 127
    unit, c1, c2 = scale_codes(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    assert not unit.any() and not c1.any()


def test_fake_int8_follows_the_engine() -> None:
    x = torch.randn(3, 100) * 3
    x[0, :64] = 0
    q = fake_int8(x)
    scale = x[:, :64].abs().amax(1, keepdim=True) / np.float32(127)
    expected = torch.where(scale > 0, (x[:, :64] / scale).round() * scale, 0.0)
    torch.testing.assert_close(q[:, :64], expected)
    assert torch.isfinite(q).all()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("tied", [True, False])
def test_starts_make_a_working_student(start: str, tied: bool) -> None:
    teacher = load_teacher(TinySource(tied=tied))
    ids = torch.randint(0, 96, (2, 12))
    student = make_student(teacher, start, mean_square_inputs(teacher, ids))
    assert torch.isfinite(student.logits(ids)).all()


def test_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match="least-squares"):
        make_student(load_teacher(TinySource()), "random")


def test_latents_survive_the_file(tmp_path) -> None:
    student = student_of(TinySource(tied=False))
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student, step=7, provenance={"text": "none"})
    loaded, metadata = checkpoint.load_student(path)
    assert metadata["step"] == "7"
    for (_, mine), (_, theirs) in zip(student.matrices(), loaded.matrices(), strict=True):
        assert torch.equal(mine.weight(), theirs.weight())
        unit, c1, c2 = mine.codes()
        low, high = torch.minimum(unit * c1, unit * c2), torch.maximum(unit * c1, unit * c2)
        inside = (mine.latent >= low) & (mine.latent <= high)
        off = (mine.latent - theirs.latent).abs() / (high - low)
        assert off[inside].max() < 0.03


def test_damaged_student_is_refused(tmp_path) -> None:
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student_of(TinySource()), step=1, provenance={})
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        checkpoint.load_student(path)
    path.write_bytes(data[:100])
    with pytest.raises(FormatError, match="no readable"):
        checkpoint.load_student(path)


def test_packed_matrix_is_the_students_bit_for_bit() -> None:
    from edgedb.format.packing import dequantize

    module = random_linear(rows=70, cols=172)
    assert np.array_equal(
        dequantize(export_student.pair_tensor(module)), module.weight().detach().numpy()
    )


def test_exported_student_runs_in_the_engine(tmp_path, tiny_spec) -> None:
    import edgedb
    from edgedb.format.packing import dequantize
    from edgedb.model.dbb import read_dbb

    student = student_of(TinySource(vocab_size=320, tied=False))
    path, out = tmp_path / "student.safetensors", tmp_path / "student.dbb"
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    export_student.export(path, out)
    found = read_dbb(out)
    for name, module in student.matrices():
        # Bit for bit, zeros of either sign aside.
        assert np.array_equal(dequantize(found.linears[name]), module.weight().detach().numpy())
        module.quantize_input = True
    ids = [3, 14, 15, 92, 65, 35]
    expected = student.logits(torch.tensor([ids]))[0].detach().numpy()
    logits = edgedb.load(out).logits(ids)
    # What is left: embedding and head in 8 bits, and the head's input.
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_embedding_in_pairs_is_fitted_to_what_the_head_sees(tmp_path, tiny_spec) -> None:
    from edgedb.format.packing import dequantize
    from edgedb.model.dbb import read_dbb

    student = student_of(TinySource(vocab_size=320))
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "real-x.npy", rng.integers(0, 320, 2000).astype(np.uint16))
    np.save(tmp_path / "sampled-0.npy", rng.integers(0, 320, (40, 512)).astype(np.uint16))
    seen = (
        student(torch.from_numpy(rng.integers(0, 320, (2, 64))))[0].flatten(0, 1).detach().numpy()
    )
    embedding = student.embedding.detach().numpy()

    def error(name: str, text: Path | None) -> float:
        export_student.export(path, tmp_path / name, table_planes=4, text=text)
        found = dequantize(read_dbb(tmp_path / name).linears["embedding"])
        return float(np.square((found - embedding) @ seen.T).sum())

    assert error("fitted.dbb", tmp_path) < error("plain.dbb", None)


def test_export_measures_the_engine_and_records_it(tmp_path, tiny_spec) -> None:
    """The check's figures are in the file, and ``edgedb info`` shows them."""
    from click.testing import CliRunner

    from edgedb.cli.commands import main
    from edgedb.model.dbb import read_dbb

    path, out = tmp_path / "student.safetensors", tmp_path / "student.dbb"
    provenance = {"quality": {"held-out": {"kl": 0.25}}}
    student = student_of(TinySource(vocab_size=320))
    checkpoint.save_student(path, student, step=1, provenance=provenance, tokenizer=tiny_spec)
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox. " * 20)
    record = export_student.export(path, out, check=tmp_path / "text.txt")
    quality = read_dbb(out).quantization["quality"]
    assert quality == record["quality"]
    assert quality["held-out"] == {"kl": 0.25}
    engine = quality["engine"]
    given = export_student.export(path, tmp_path / "given.dbb", quality={"read again": 1})
    assert given["quality"] == {"read again": 1}
    assert 10 < engine["tokens"] <= 1000
    assert 0 <= engine["kl"] < 0.05 and engine["top1"] > 0.8
    assert engine["ppl_engine"] == pytest.approx(engine["ppl_pytorch_int8_inputs"], rel=0.05)
    assert not list(tmp_path.glob("*.trial*"))
    (tmp_path / "text.txt").write_text("")
    for text in ("text.txt", "nothing.txt"):
        with pytest.raises(EdgeDBError, match=text):
            export_student.export(path, out, check=tmp_path / text)
    assert not list(tmp_path.glob("*.trial*"))
    shown = CliRunner().invoke(main, ["info", str(out)])
    assert "measured quality" in shown.output and "engine kl" in shown.output


def test_the_exporter_takes_a_student_too(tmp_path, tiny_spec) -> None:
    from click.testing import CliRunner

    from edgedb.model.dbb import read_dbb
    from tools.export import main

    path, out = tmp_path / "student.safetensors", tmp_path / "student.dbb"
    checkpoint.save_student(
        path, student_of(TinySource(vocab_size=320)), step=3, provenance={}, tokenizer=tiny_spec
    )
    done = CliRunner().invoke(main, [str(path), str(out)])
    assert done.exit_code == 0, done.output
    assert read_dbb(out).quantization["step"] == 3


def test_student_without_tokenizer_is_not_exported(tmp_path) -> None:
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student_of(TinySource()), step=1, provenance={})
    with pytest.raises(FormatError, match="no tokenizer"):
        export_student.export(path, tmp_path / "out.dbb")


def test_a_student_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"half a student")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_student(tmp_path / "s", student_of(TinySource()), step=1, provenance={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": "x"},
        {"config": None},
        {"config": "{"},
        {"config": "[]"},
        {"config": "{}"},
        {"provenance": None},
        {"provenance": "[" * 100_000},
        {"tokenizer": "{"},
        {"tokenizer": "{}"},
    ],
)
def test_damaged_metadata_name_the_file(tmp_path: Path, tiny_spec, change: dict) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "student.safetensors"
    student = student_of(TinySource(vocab_size=320))
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    tensors, metadata = checkpoint.read_student(path)
    metadata = {key: text for key, text in {**metadata, **change}.items() if text is not None}
    save_file(tensors, path, metadata)
    with pytest.raises(FormatError, match=r"student\.safetensors: "):
        export_student.export(path, tmp_path / "student.dbb")


def test_only_the_check_text_applies_to_a_student(tmp_path: Path, tiny_spec) -> None:
    from click.testing import CliRunner

    from edgedb.model.dbb import read_dbb
    from tools.export import main

    path, out, text = (tmp_path / name for name in ("s.safetensors", "s.dbb", "text"))
    student = student_of(TinySource(vocab_size=320))
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    text.write_text("Once upon a time there was a little girl. " * 9)
    for options in (("--pairs", "2"), ("--no-calibration",), ("--seed", "0", "--head", "int8")):
        done = CliRunner().invoke(main, [str(path), str(out), *options])
        assert done.exit_code == 2 and not out.exists()
        assert done.stderr.count("\n") == 1 and options[0] in done.stderr
    done = CliRunner().invoke(main, [str(path), str(out), "--calibration", str(text)])
    assert done.exit_code == 0, done.stderr
    assert "engine" in read_dbb(out).quantization["quality"]
