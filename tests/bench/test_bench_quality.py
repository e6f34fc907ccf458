"""The bench of quality: what it keeps, reads and writes, without llama.cpp and with tiny models."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import write_gguf
from places import ROOT

from bench.peers.results import Results
from bench.quality import llama_cpp, ours, plot, report, speed, teachers, zeroshot
from bench.quality.llama_cpp import Format, LlamaCpp, figures, layer_bits
from bench.quality.report import Found
from bench.quality.rows import Rows
from edgedb import EdgeDBError

PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   :   4.914867 ±   0.491261
Mean PPL(base)                :   4.249204 ±   0.419949

====== KL divergence statistics ======
Mean    KLD:   0.106738 ±   0.007830
Maximum KLD:   1.178506
99.9%   KLD:   1.016859
99.0%   KLD:   0.509000
Median  KLD:   0.074448

Same top p: 82.745 ± 2.371 %
"""
HEADER = {"cpu": "A CPU", "cores": 2, "system": "Linux", "commit": "abc", "peers": "fake 1"}
HEADER |= {"command": "make bench-quality", "date": "2026-01-01"}


def measured(kind: str, name: str, kl: float, **more: Any) -> dict[str, Any]:
    row = {"kind": kind, "name": name, "kl": kl, "kl_999": 9 * kl, "same_top": 0.75, "commit": "c1"}
    return {**row, "perplexity": 30.0, "base_perplexity": 24.0, "layer_bits": 3.0, **more}


def theirs(name: str, kl: float, *, padded: bool = True, bits: float = 3.0) -> dict[str, Any]:
    return measured(llama_cpp.KIND, name, kl, padded=padded, layer_bits=bits)


def test_rows_are_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    rows = Rows(path)
    rows.add({"kind": "a", "name": "x", "kl": 1})
    rows.add({"kind": "a", "name": "x", "kl": 2})
    with path.open("a") as file:
        file.write('{"kind": "a", "na')  # killed while it wrote
    again = Rows(path)
    assert again.last(kind="a", name="x") == {"kind": "a", "name": "x", "kl": 2}
    assert again.last(kind="b") is None
    again.add({"kind": "b"})
    assert [row["kind"] for row in Rows(path).all()] == ["a", "a", "b"]


def test_what_llama_perplexity_prints_is_read() -> None:
    found = figures(PRINTED)
    assert found["kl"] == 0.106738 and found["kl_999"] == 1.016859 and found["kl_99"] == 0.509
    assert found["same_top"] == pytest.approx(0.82745)
    assert found["perplexity"] / found["base_perplexity"] == pytest.approx(1.156656, rel=1e-5)
    with pytest.raises(EdgeDBError, match="kl_999"):
        figures(PRINTED.replace("99.9%", "99.8%"))


@pytest.fixture
def sources(tmp_path: Path) -> teachers.Sources:
    """Texts and a recipe for teachers that are fakes."""
    shared, made = tmp_path / "shared", tmp_path / "made"
    for folder in ("data/calib", "data/wikitext2", "tools"):
        (shared / folder).mkdir(parents=True)
    made.mkdir()
    (shared / "data/wikitext2/wiki.test.raw").write_text("text")
    for name in ("a.txt", "b.txt", teachers.HELD_OUT):
        (shared / "data/calib" / name).write_text("".join(f"{name} {i}\n" for i in range(20_000)))
    program = "import sys; open(sys.argv[2], 'w').write(' '.join(sys.argv[1:2] + sys.argv[3:]))"
    (shared / "tools/continuous_teacher.py").write_text(program)
    return teachers.Sources(shared, Path("source.gguf"), made)


def test_teachers_and_text_are_made_once(sources: teachers.Sources) -> None:
    assert sources.teacher().read_text() == "source.gguf"
    padded = sources.teacher(padded=True)
    assert padded.read_text() == "source.gguf pad"
    padded.write_text("kept")
    assert sources.teacher(padded=True).read_text() == "kept"
    text = sources.calibration().read_text()
    assert len(text) >= teachers.CALIBRATION[0]
    assert "a.txt" in text and "b.txt" in text and teachers.HELD_OUT not in text
    assert all(line.startswith(("a.txt ", "b.txt ")) for line in text.splitlines())
    with pytest.raises(EdgeDBError, match="zeroshot is not there"):
        _ = sources.questions


def test_llama_cpps_programs_are_run_once_for_each_file(sources: teachers.Sources) -> None:
    """Fakes that note their arguments, and write whatever ends in ``partial``."""
    folder = sources.made / "bin"
    folder.mkdir()
    fake = (
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"with open({str(folder / 'log')!r}, 'a') as log: print(*sys.argv, file=log)\n"
        "for name in sys.argv[1:]:\n"
        "    if 'partial' in name: pathlib.Path(name).write_text('made')\n"
        f"print({PRINTED!r} if '--kl-divergence' in sys.argv else '')\n"
    )
    for name in ("quantize", "imatrix", "perplexity"):
        program = folder / f"llama-{name}"
        program.write_text(fake)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    said: list[str] = []
    found = LlamaCpp(folder, sources, "1.0", 1, said.append)
    base = found.base(sources.teacher())
    assert found.file(Format("Q2_K", True)).read_text() == "made"
    divergence = found.divergence(found.file(Format("Q2_K", True)), base)
    assert divergence["kl"] == 0.106738
    log = (folder / "log").read_text().splitlines()
    assert [Path(line.split()[0]).name for line in log] == [
        "llama-perplexity", "llama-imatrix", "llama-quantize", "llama-perplexity"
    ]  # fmt: skip
    assert "--imatrix" in log[2] and "teacher-padded.gguf" in log[2] and "Q2_K" in log[2]
    assert "-c 2048" in log[3] and "-t 1" in log[3]
    (folder / "llama-perplexity").unlink()
    with pytest.raises(EdgeDBError, match="make bench-quality builds it"):
        found.divergence(base, base)


def test_ours_is_measured_once_a_commit(
    sources: teachers.Sources,
    tiny_model: Path,
    bpe_metadata: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``edgedb`` is a fake that writes a model where it is told to."""
    write_gguf(sources.made / "teacher.gguf", bpe_metadata)
    commands: list[list[str]] = []

    def run(command: list[str], complaint: str, **more: Any) -> str:
        commands.append(command[3:])
        if command[3] == "convert":
            shutil.copyfile(tiny_model, command[5])
            Path(command[command.index("--plan") + 1]).write_text("1.5")
        return json.dumps({"kl": 0.5})

    monkeypatch.setattr(ours, "run", run)
    rows = Rows(sources.made / "rows.jsonl")
    old, base = sources.made / "edgedb-2.9-old.dbb.partial", Path("base.kld")
    old.touch()
    mine = ours.Ours(sources, "new", 1, print)
    row = mine.measure(2.9, base, rows)
    assert (row["kl"], row["commit"], row["name"]) == (0.5, "new", "edgedb 2.9")
    assert not old.exists() and mine.plan(2.9).read_text() == "1.5"
    assert str(sources.made) not in json.dumps(row)
    assert [command[0] for command in commands] == ["convert", "eval"]
    # Two tables of 320 rows at 8.5 bits beside 147,456 weights in the layers at 2.9.
    tables = 2 * 320 * 96
    in_all = (2.9 * 147_456 + 8.5 * tables) / (147_456 + tables)
    assert float(commands[0][commands[0].index("--bits") + 1]) == pytest.approx(in_all, abs=0.01)
    assert mine.measure(2.9, base, rows) == row and len(commands) == 2
    ours.Ours(sources, "newer", 1, print).measure(2.9, base, rows)
    assert len(commands) == 4 and not list(sources.made.glob("*-new.dbb"))
    assert mine.model("default", tiny_model, base, rows)["file"] == tiny_model.name
    mine.model("default", tiny_model, base, rows)
    assert len(commands) == 5


def test_a_failing_command_is_one_line() -> None:
    code = "print('why\\nit failed'); raise SystemExit(3)"
    with pytest.raises(EdgeDBError, match=r"^cannot: it failed$"):
        teachers.run([sys.executable, "-c", code], "cannot")


def test_bits_of_the_layers_are_counted_in_the_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    weights = np.zeros((4, 64), np.float32)
    for name, kind in (("blk.0.a", "Q4_0"), ("blk.0.b", "Q8_0"), ("token_embd", "Q8_0")):
        of = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(weights, of)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=of)
    writer.add_tensor("blk.0.norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert layer_bits(tmp_path / "m.gguf") == (4.5 + 8.5) / 2


@pytest.fixture
def zero_shot(tmp_path: Path) -> Path:
    """A folder with every task, 45 questions each."""
    for number, task in enumerate(zeroshot.TASKS):
        line = {"context": "Once upon a", "choices": ["time", "sea"], "gold": number % 2}
        lines = [json.dumps({**line, "gold": i % 2}) for i in range(45)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_zero_shot_goes_on_where_it_was(
    zero_shot: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(zero_shot / "rows.jsonl")
    answer, answered = zeroshot.multiple_choice, []

    def interrupted(model: Any, questions: Any) -> Any:
        if len(answered) == 40:
            raise KeyboardInterrupt
        answered.append(len(questions))
        return answer(model, questions)

    monkeypatch.setattr(zeroshot, "multiple_choice", interrupted)
    models = {"one": tiny_model, "two": tiny_model}
    with pytest.raises(KeyboardInterrupt):
        zeroshot.run(models, zero_shot, rows)
    # The same file under two names is measured once. 36 answers are six parts of six tasks (five
    # of three questions, one of two); what came after them is there for some tasks only.
    partial = zeroshot.scores(rows.all())
    assert {score.n for score in partial["one"].values()} == {17}
    monkeypatch.setattr(zeroshot, "multiple_choice", answer)
    zeroshot.run(models, zero_shot, Rows(rows.path))
    whole = zeroshot.scores(Rows(rows.path).all())
    assert {score.n for score in whole["one"].values()} == {45}
    assert all(0 < score.share < 1 for score in whole["one"].values())


def test_parts_are_a_permutation() -> None:
    questions = [zeroshot.Question((str(i),), ("x",), 0) for i in range(101)]
    cut = zeroshot.parts(questions)
    assert len(cut) == zeroshot.PARTS
    assert cut == zeroshot.parts(questions)
    order = [int(question.contexts[0]) for part in cut for question in part]
    assert sorted(order) == list(range(101)) != order


def races() -> dict[str, Results]:
    def records(model: str, rates: dict[str, float]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"model": model, "name": name} for name in rates]
        for name, rate in rates.items():
            for number, slow in enumerate((1.0, 0.5, 1.0)):
                for threads in (1, 2):
                    value = rate * slow * (1.2 if threads == 2 else 1)
                    place = {"test": "decode", "threads": threads, "round": number}
                    found.append({"model": model, "name": name, **place, "value": value})
        return found

    wide = records(speed.WIDE, {"edgedb 2.9": 500.0, "llama.cpp Q2_K": 200.0})
    real = {"edgedb default": 400.0, "llama.cpp Q4_0": 250.0, "llama.cpp Q5_0": 200.0}
    return {
        speed.WIDE: Results(speed.WIDE, wide),
        speed.SMOLLM2: Results(speed.SMOLLM2, records(speed.SMOLLM2, real)),
    }


@pytest.fixture
def found() -> Found:
    rows = [
        theirs("Q2_K", 0.9),
        theirs("Q4_0", 0.2, padded=False, bits=4.5),
        theirs("Q5_0", 0.05, padded=False, bits=5.5),
        measured(ours.KIND, "edgedb 2.9", 0.7, bits=2.9, layer_bits=2.9),
        measured(ours.KIND, "edgedb 2.9", 0.4, bits=2.9, layer_bits=2.9),
        measured(ours.MODEL, "default", 0.15),
    ]
    for name, right in (("teacher, int8", 50), ("default", 49)):
        for part in range(3):
            for task in zeroshot.TASKS:
                row = {"kind": zeroshot.KIND, "model": name, "task": task, "part": part, "n": 100}
                rows.append({**row, "accuracy": right, "normalized": right})
    return Found({**HEADER, "decode_at": {"commit": "abc"}}, rows, races())


def test_the_report_has_the_newest_rows_in_order(found: Found) -> None:
    page = report.markdown(found)
    lines = page.splitlines()
    (mine,) = [line for line in lines if line.startswith("| **edgedb**")]
    assert "| 2.90 | **0.400** (target 0.5) | 3.60 | 75.0% | 1.250 | 600 (300 to 600) |" in mine
    fair = [row["name"] for row in found.fair]
    assert fair == ["edgedb 2.9", "Q2_K", "Q4_0"]  # Q5_0 is no format of the comparison
    assert "| default | 49.0" in page and "| 49.00 | 98.0% |" in page
    assert "Not measured yet: edgedb 2.3, edgedb 3.4, edgedb 4.5, Q4_K_M, IQ4_XS" in page
    assert "edgedb at commit c1, decode at abc; fake 1." in page
    document = json.loads(report.as_json(found))
    assert [row["kl"] for row in document["rows"] if row["kind"] == ours.KIND] == [0.4]
    assert document["zero_shot"]["default"]["piqa"] == {"right": 147, "n": 300}


def test_tables_of_a_page_are_made_anew(found: Found) -> None:
    page = f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"
    written = report.in_page(page, found, None)
    assert written.startswith(f"before\n\n{report.BEGIN}\n**Both quantizers on one teacher**\n\n| ")
    assert written.endswith(f"2026-01-01.\n{report.END}\n\nafter\n") and "old" not in written
    assert report.in_page(written, found, None) == written
    assert "![KL against decode speed](p.png)\n\nA CPU" in report.in_page(page, found, "p.png")
    with pytest.raises(EdgeDBError, match="no place for tables"):
        report.in_page("nothing", found, None)
    assert report.BEGIN in (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")


def test_only_formats_as_good_as_the_default_race_against_it(found: Found) -> None:
    assert speed.qualified(found.rows, 0.15) == ["llama.cpp Q5_0"]
    race = found.races[speed.SMOLLM2]
    compared = speed.against_the_best(race, "edgedb default", ["llama.cpp Q5_0"])
    assert compared is not None
    ours_key, theirs_key, ratio = compared
    assert (ours_key.threads, theirs_key.threads, ratio.values) == (2, 2, (2.0, 2.0, 2.0))
    assert "fastest of at most KL 0.150" in report.markdown(found)
    assert speed.against_the_best(race, "edgedb default", []) is None


def test_a_report_of_nothing_and_a_picture(found: Found, tmp_path: Path) -> None:
    empty = Found({**HEADER, "decode_at": {}}, [], {})
    assert report.markdown(empty).startswith("# Quality and speed against llama.cpp")
    assert json.loads(report.as_json(empty))["rows"] == []
    pytest.importorskip("matplotlib")
    assert plot.plot(tmp_path / "p.png", found)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert not plot.plot(tmp_path / "q.png", empty)


def test_the_formats_are_those_of_the_quantizer() -> None:
    assert len({(f.name, f.padded) for f in llama_cpp.FORMATS}) == len(llama_cpp.FORMATS)
    assert set(report.TARGETS) == set(ours.LAYER_BITS)
    assert (ROOT / "bench/quality/linger.c").exists()
