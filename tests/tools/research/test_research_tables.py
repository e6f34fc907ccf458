"""Tables of made-up records, and the file that records are kept in."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from tools.research.__main__ import main  # noqa: E402
from tools.research.jobs import Job, Size, jobs  # noqa: E402
from tools.research.results import Results, rounded, spread  # noqa: E402
from tools.research.tables import all_tables, elsewhere, paired, ratio, starts  # noqa: E402

SIZE = Size()


def quality(kl: float) -> dict[str, Any]:
    tenth = {"teacher_entropy": 1.0, "entropy": 1.0, "kl": kl, "nll_added": kl, "top1": 0.5}
    keys = ("teacher_entropy", "student_entropy", "twin_0.1", "twin_0.3", "twin_0.5",
            "added_by_teacher_entropy", "added_by_student_entropy")  # fmt: skip
    return {
        "kl": kl, "ppl": 10 * math.exp(kl), "teacher_ppl": 10.0, "top1": 0.5, "entropy": 2.0,
        "teacher_entropy": 1.5, "foretold": dict.fromkeys(keys, 0.5), "mass": [0.11] + [0.1] * 9,
        "teacher_mass": [0.1] * 10, "text_mass": [0.1] * 10, "by_entropy": [tenth] * 10,
    }  # fmt: skip


def record(job: Job, kl: float) -> dict[str, Any]:
    own = {"key": job.key, "kind": job.kind, **vars(job), "quality": {"wiki": quality(kl)}}
    return own | {"tokens": 10**6, "rate": job.rate}


def trained(student: str, start: str, gamma: float | None, steps: int, *kls: float) -> list[Any]:
    made = [Job("llama", student, start, gamma, steps, seed) for seed in range(len(kls))]
    return [record(job, kl) for job, kl in zip(made, kls, strict=True)]


def test_every_job_has_its_place_in_a_table() -> None:
    records = [record(job, 0.1 + 0.001 * i) for i, job in enumerate(jobs(SIZE))]
    page = all_tables(records)
    for title in ("Teachers", "Rates", "1. ", "3. ", "4. ", "5. Rank", "5. What"):
        assert f"**{title}" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert all(line.count("|") >= 4 for line in rows)
    others = [r for r in records if r["kind"] != "trial"]
    parts = [part for part in page.split("\n\n**") if not part.startswith("Rates")]
    assert all_tables(others) == "\n\n**".join(parts)  # no table counts a trial as a training


def test_dad_is_compared_seed_by_seed() -> None:
    found = trained("fdb", "weighted", None, SIZE.usual, 0.1, 0.2, 0.3)
    found += trained("fdb", "weighted", 0.3, SIZE.usual, 0.11, 0.22, 0.33)
    assert paired(found, lambda r: r["quality"]["wiki"]["kl"]) == "+10.0% ± 0.0"
    row = elsewhere(found).splitlines()[-1]
    assert row.startswith("| fdb | 0.200 ± 0.100 | 0.220 ± 0.110 |")
    assert paired(found[:4], lambda r: r["quality"]["wiki"]["kl"]) == "+10.0%"


def test_starts_stand_at_every_length() -> None:
    found = [record(Job("llama", "fdb", "absmax"), 2.0)]
    found += trained("fdb", "absmax", None, SIZE.steps[0], 0.5, 0.7)
    found += trained("fdb", "absmax", None, SIZE.steps[2], 0.1)
    assert starts(found).splitlines()[-1] == "| absmax | 2.000 | 0.600 ± 0.141 |  | 0.100 |"
    assert "after 2M | after 6.5M | after 65M" in starts(found)


def test_ratios_are_geometric_means() -> None:
    made = {"a": quality(math.log(2)), "b": quality(math.log(8))}
    assert ratio({"quality": made}) == pytest.approx(4)


def test_spreads_have_the_mean_s_decimals() -> None:
    assert spread([0.12, 0.124]) == "0.122 ± 0.003"
    assert spread([99.1, 99.5]) == "99.3 ± 0.3"
    assert spread([12.0]) == "12.0" and spread([]) == "" and spread([0.0]) == "0.000"


def test_records_are_rounded_and_whole(tmp_path: Path) -> None:
    assert rounded({"a": [1 / 3, math.nan, 2], "b": math.inf}) == {
        "a": [0.333333, None, 2],
        "b": None,
    }
    path = tmp_path / "deep" / "r.jsonl"
    Results(path).add({"key": "x", "value": 1 / 3})
    with path.open("a") as file:
        file.write('{"key": "cu')  # a kill
    results = Results(path)
    assert "x" in results and "cu" not in results and results["x"]["value"] == 0.333333
    with pytest.raises(KeyError):
        results["cu"]
    results.add({"key": "y"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["x", "y"]


def test_the_command_prints_tables_and_refuses_unknown_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "r.jsonl")
    results.add(record(Job("llama", "fdb", "absmax"), 2.0))
    arguments = ["tables", "--out", str(results.path)]
    monkeypatch.setattr(sys, "argv", ["research", *arguments])
    main()
    assert "| absmax | 2.000 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["research", *arguments, "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["start"] == "absmax"
    asked = ["research", "students", "corpus", "everything", "--work", "w"]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit):
        main()
    assert "everything: choose among" in capsys.readouterr().err
