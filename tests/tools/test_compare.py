"""Measures against plain float64 arithmetic, and every kind of model by the same command."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from checkpoints import weights, write_hf  # noqa: E402
from tiny import TinySource  # noqa: E402

from edgedb.convert.sources import open_source  # noqa: E402
from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.format.packing import dequantize  # noqa: E402
from edgedb.model.dbb import read_dbb  # noqa: E402
from edgedb.model.families import program_of  # noqa: E402
from tools.checkpoint import save_student  # noqa: E402
from tools.compare import Recorded, agreement, main, read_results, table, window_losses  # noqa: E402
from tools.decoder import Decoder, load_teacher  # noqa: E402
from tools.peers.__main__ import main as peers_main  # noqa: E402
from tools.peers.__main__ import settings_of  # noqa: E402
from tools.peers.folder import split_tensors, write_folder  # noqa: E402
from tools.starts import main as starts_main  # noqa: E402
from tools.student import make_student  # noqa: E402
from tools.weights import open_weights  # noqa: E402

TEXT = "Once upon a time there was a little girl. She lived in a small house near the sea. " * 9


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 96, (3, 20)))


@pytest.fixture(scope="module")
def pair() -> tuple[Decoder, Decoder]:
    """Teacher and student."""
    return load_teacher(TinySource()), load_teacher(TinySource(seed=1))


def log_probabilities(model: Decoder, row: torch.Tensor) -> np.ndarray:
    logits = model.logits(row[None])[0, :-1].detach().numpy().astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def test_agreement_equals_plain_arithmetic(pair, ids) -> None:
    teacher, student = pair
    kl, nll, same = [], [], []
    for row in ids:
        log_pt, log_ps = log_probabilities(teacher, row), log_probabilities(student, row)
        kl.append((np.exp(log_pt) * (log_pt - log_ps)).sum(1))
        nll.append(-log_ps[np.arange(19), row[1:]])
        same.append(log_pt.argmax(1) == log_ps.argmax(1))
    found = agreement(student, Recorded(teacher, ids, rows=2))
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert found["ppl"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert found["top1"] == pytest.approx(np.mean(same))
    assert window_losses(student, ids) == pytest.approx([n.mean() for n in nll], rel=1e-4)


def test_a_model_agrees_with_itself(pair, ids) -> None:
    found = agreement(pair[0], Recorded(pair[0], ids))
    assert found["top1"] == 1 and abs(found["kl"]) < 1e-6
    losses = window_losses(pair[0], ids)
    assert found["ppl"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_dbb_is_its_planes(tiny_model: Path) -> None:
    found, file = open_weights(tiny_model), read_dbb(tiny_model)
    name = "layers.1.mlp_down"
    assert np.array_equal(found.tensor(name), dequantize(file.linears[name]))
    assert np.array_equal(found.tensor("final_norm"), file.vectors["final_norm"])
    # One pair: two bits a weight where padding and row scales cost nothing; here they do.
    assert 2.25 < found.layer_bits < 8
    weights = sum(rows * cols for rows, cols in program_of(file.config).matrices().values())
    assert found.all_bits == pytest.approx(8 * tiny_model.stat().st_size / weights)


def test_a_student_is_what_it_multiplies_with(tmp_path: Path) -> None:
    student = make_student(load_teacher(TinySource()), "absmax")
    save_student(tmp_path / "s.safetensors", student, step=3, provenance={})
    found = open_weights(tmp_path / "s.safetensors")
    for name, module in student.matrices():
        assert np.array_equal(found.tensor(name), module.weight().detach().numpy())
    assert 2.25 < found.layer_bits < 3  # in rows of 64 a row's own scale is half a bit
    assert found.record == {"step": 3, "pairs": [1]}


def test_a_mixed_students_bits_are_counted_by_matrix(tmp_path: Path) -> None:
    def bits(plan: dict[str, int]) -> float:
        student = make_student(load_teacher(TinySource()), "absmax", plan=plan)
        save_student(tmp_path / "s.safetensors", student, step=3, provenance={})
        found = open_weights(tmp_path / "s.safetensors")
        assert found.record["pairs"] == sorted({1, *(planes / 2 for planes in plan.values())})
        return found.layer_bits

    shapes = {n: s for n, s in program_of(TinySource().config).matrices().items() if "." in n}
    rows, cols = shapes["layers.0.mlp_down"]
    half = (1.125 * rows * cols + 32 * rows) / sum(r * c for r, c in shapes.values())
    whole = (2.25 * rows * cols + 32 * rows) / sum(r * c for r, c in shapes.values())
    assert bits({"layers.0.mlp_down": 3}) == pytest.approx(bits({}) + half)
    assert bits({"layers.0.mlp_down": 4}) == pytest.approx(bits({}) + whole)


def test_a_folder_keeps_every_weight(tmp_path: Path, tiny_bpe: bytes) -> None:
    original = open_source(write_hf(tmp_path / "hf", tiny_bpe))
    copy = open_source(write_folder(original, tmp_path / "copy"))
    for name in (*program_of(original.config).matrices(), *program_of(original.config).vectors()):
        assert np.array_equal(original.tensor(name), copy.tensor(name)), name
    assert copy.config == original.config
    assert copy.tokenizer_spec.data == original.tokenizer_spec.data


def run(monkeypatch: pytest.MonkeyPatch, command, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    command()


@pytest.fixture
def teacher(tmp_path: Path, tiny_bpe: bytes) -> Path:
    return write_hf(tmp_path / "teacher", tiny_bpe)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_the_command_measures_once_and_prints_a_table(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("matplotlib")
    start, out = tmp_path / "start.safetensors", tmp_path / "results.jsonl"
    run(monkeypatch, starts_main, teacher, start, "--text", text, "--sequences", 2, "--length", 16)
    arguments = (
        teacher, f"teacher={teacher}", f"start={start}", "--text", text, "--window", 16,
        "--held-out", text, "--held-out-window", 8, "--skip", 3, "--out", out,
    )  # fmt: skip
    run(monkeypatch, main, *arguments)
    exact, started = read_results(out)
    assert exact["name"] == "teacher" and exact["kl"] == pytest.approx(0, abs=1e-6)
    assert exact["layer_bits"] == exact["all_bits"] == 16
    assert started["kl"] > 0.001 and started["layer_bits"] < 3
    assert started["ppl"] == pytest.approx(math.exp(np.mean(started["window_losses"])), rel=1e-4)
    monkeypatch.setattr("tools.compare.Bench.measure", None)  # would raise if called again
    capsys.readouterr()
    run(monkeypatch, main, *arguments, f"same={start}", "--table", "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    results = read_results(out)
    assert [r["name"] for r in results] == ["teacher", "start", "same"]
    assert results[2]["kl"] == started["kl"]
    assert capsys.readouterr().out.strip().endswith(table(results).splitlines()[-1])


def test_a_line_cut_short_by_a_kill_is_measured_again(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.jsonl"
    arguments = (teacher, f"a={teacher}", "--text", text, "--window", 16,
                 "--held-out", text, "--held-out-window", 8, "--skip", 3, "--out", out)  # fmt: skip
    run(monkeypatch, main, *arguments)
    with out.open("a") as file:
        file.write('{"name": "b", "lay')
    assert [r["name"] for r in read_results(out)] == ["a"]
    run(monkeypatch, main, *arguments, f"b={teacher}")
    assert [r["name"] for r in read_results(out)] == ["a", "b"]


def test_a_changed_model_is_measured_again(
    teacher: Path, text: Path, tmp_path: Path, tiny_bpe: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.jsonl"
    arguments = (teacher, f"m={tmp_path / 'm'}", "--text", text, "--window", 16,
                 "--held-out", text, "--held-out-window", 8, "--skip", 3, "--out", out)  # fmt: skip
    for seed in (1, 2):
        write_hf(tmp_path / "m", tiny_bpe, tensors=weights(seed=seed))
        run(monkeypatch, main, *arguments)
    first, second = read_results(out)
    assert first["sha256"] != second["sha256"] and first["kl"] != second["kl"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"--window": 10**6}, "less than one window"),
        ({"--text": "missing.txt"}, "No such file"),
        ({"model": "no-equals-sign"}, "NAME=MODEL"),
        ({"--out": "no/such/folder/r.jsonl"}, "no folder"),
        ({"--plot": "."}, "is a folder"),
    ],
)
def test_impossible_requests_are_one_line(
    teacher: Path, text: Path, tmp_path: Path, monkeypatch, capsys, change: dict, match: str
) -> None:
    options = {"--text": text, "--held-out": text, "--held-out-window": 8, "--skip": 3,
               "--window": 16, "--out": tmp_path / "r.jsonl", "model": f"m={teacher}"}  # fmt: skip
    options |= change
    model = options.pop("model")
    flat = [part for option in options.items() for part in option]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, main, teacher, model, *flat)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert match in error and "\n" not in error


def test_a_missing_package_is_named(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "hqq", None)
    monkeypatch.setattr("tools.peers.methods.PACKAGES", {"hqq": ("no-such-package", "hqq")})
    with pytest.raises(SystemExit):
        run(monkeypatch, peers_main, "hqq", teacher, tmp_path / "out")
    assert "pip install no-such-package" in capsys.readouterr().err


class Peer(torch.nn.Module):
    """What a method returns: one rounded matrix under transformers' names."""

    def __init__(self, source, *, saves: bool) -> None:
        super().__init__()
        self.saves = saves
        name = "model.layers.0.self_attn.q_proj.weight"
        weight = torch.from_numpy(split_tensors(source)[name])
        layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
        layer.weight = torch.nn.Parameter((weight * 9).round() / 9)
        self.model = torch.nn.Module()
        attention = torch.nn.ModuleDict({"q_proj": layer})
        self.model.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"self_attn": attention})])

    def save_pretrained(self, folder: Path) -> None:
        if not self.saves:
            raise RuntimeError("the disk is full")
        (folder / "saved").touch()


def test_a_peers_folder_is_whole_or_absent(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source, out = open_source(teacher), tmp_path / "out"
    saves = False
    monkeypatch.setattr("tools.peers.methods.version", lambda method: "1")
    method = {"hqq": lambda folder, ids, **options: (Peer(source, saves=saves), {})}
    monkeypatch.setattr("tools.peers.methods.METHODS", method)
    with pytest.raises(RuntimeError):
        run(monkeypatch, peers_main, "hqq", teacher, out)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "of a run that was killed").touch()
    saves = True
    run(monkeypatch, peers_main, "hqq", teacher, out)
    assert {"peer.json", "saved", "config.json"} < {path.name for path in out.iterdir()}
    assert not (out / "of a run that was killed").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "teacher"]
    with pytest.raises(SystemExit):
        run(monkeypatch, peers_main, "hqq", teacher, out)
    assert "exists already" in capsys.readouterr().err


def test_a_sentencepiece_teacher_is_refused_in_one_line(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes
) -> None:
    folder = write_hf(tmp_path / "hf", tiny_bpe, vocab_size=400)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    with pytest.raises(EdgeDBError, match="SentencePiece"):
        write_folder(open_source(folder), tmp_path / "copy")


def test_weights_that_are_none_are_refused(teacher: Path) -> None:
    from tools.peers.methods import most_levels, weight_error

    source = open_source(teacher)
    original = split_tensors(source)

    class Matrices(torch.nn.Module):
        """The first layer as transformers names it, each matrix rounded to ``levels`` levels."""

        def __init__(self, levels: int, shift: int = 0) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            layer = torch.nn.ModuleDict()
            for name in ("q_proj", "o_proj"):
                weight = torch.from_numpy(original[f"model.layers.0.self_attn.{name}.weight"])
                layer[name] = torch.nn.Linear(*weight.shape[::-1], bias=False)
                step = 2 * weight.abs().max() / (levels - 1)
                rounded = ((weight / step - 0.5).round() + 0.5 + shift) * step
                layer[name].weight = torch.nn.Parameter(rounded)
            self.model.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"self_attn": layer})])

    assert weight_error(Matrices(8), original) < 0.5
    assert most_levels(Matrices(4)) <= 4 < most_levels(Matrices(16))
    with pytest.raises(EdgeDBError, match="not the weights"):
        weight_error(Matrices(4, shift=1), original)


def test_settings_are_json() -> None:
    assert settings_of(["axis=0", "extension=true"]) == {"axis": 0, "extension": True}
    with pytest.raises(EdgeDBError, match="NAME=JSON"):
        settings_of(["axis"])
