"""A batch from its input to its output: the same file, whatever happened on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgedb.cli import commands as cli

Run = Callable[..., Result]
SYSTEM = "Answer in one word, and do not say why. " * 8


def write_input(path: Path, n: int) -> None:
    """Lines of every kind, some of which fail."""
    lines: list[str] = []
    for i in range(n):
        line: dict[str, object] = {"id": f"line {i}", "max_tokens": 1 + i % 7}
        if i % 3 == 0:
            line["messages"] = [{"role": "user", "content": SYSTEM + f"{i}?"}]
        else:
            line["prompt"] = ("Once upon a time " * (i % 5 + 1)) + str(i)
        if i % 4 == 0:
            line["temperature"] = 1.5
        lines.append("{" if i % 17 == 5 else json.dumps(line))
    path.write_text("\n".join(lines))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        options = ["--model", tiny_model, *arguments]
        return CliRunner().invoke(cli.main, ["batch", "in.jsonl", *map(str, options)])

    return invoke


def test_every_way_gives_the_same_file(run: Run) -> None:
    write_input(Path("in.jsonl"), 40)
    results = [
        run("a.jsonl", "--parallel", 1),
        run("b.jsonl", "--parallel", 16),
        run("c.jsonl", "--cache-tokens", 512, "--threads", 1),
    ]
    assert [result.exit_code for result in results] == [3, 3, 3], results[0].output
    assert "40 lines, 3 failed; 40 answered now" in results[0].stderr
    texts = {Path(f"{name}.jsonl").read_bytes() for name in "abc"}
    assert len(texts) == 1
    records = [json.loads(line) for line in texts.pop().splitlines()]
    assert [record["id"] for record in records[:7]] == [f"line {i}" for i in range(5)] + [
        None,
        "line 6",
    ]
    assert run("d.jsonl", "--seed", 1).exit_code == 3
    assert Path("d.jsonl").read_bytes() != Path("a.jsonl").read_bytes()


def test_exit_codes_and_refusals(run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "a", "max_tokens": 1}\n')
    assert run("out.jsonl").exit_code == 0
    again = run("out.jsonl")
    assert (again.exit_code, again.stdout) == (2, "") and "--overwrite" in again.stderr
    assert run("out.jsonl", "--overwrite").exit_code == 0
    Path("in.jsonl").write_text('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n')
    twice = run("twice.jsonl")
    assert twice.exit_code == 2 and "same id" in twice.stderr
    assert not Path("twice.jsonl.part").exists()


def test_a_run_without_a_terminal_says_how_far_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgedb.cli import ui

    monkeypatch.setattr(ui, "_REPORT_SECONDS", 1e-6)
    write_input(Path("in.jsonl"), 5)
    said = run("out.jsonl").stderr.splitlines()
    assert "1 of 5 lines" in said[0] and "tokens/s" in said[0] and "min left" in said[0]
    assert len(said) == 6


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, tiny_model: Path) -> None:
    """And a kill does, too: the next run goes on, and the file is that of one run."""
    write_input(tmp_path / "in.jsonl", 60)
    command = [sys.executable, "-c", _SLOW, "batch", "in.jsonl", "out.jsonl"]
    command += ["--model", str(tiny_model), "--parallel", "4"]
    env = os.environ | {"EDGEDB_BACKEND": "native", "PYTHONUNBUFFERED": "1"}
    part = tmp_path / "out.jsonl.part"
    done = 0
    ends = (
        (signal.SIGINT, 130, rb"edgedb: \d+ of 60 lines are kept; run again to go on\n"),
        (signal.SIGKILL, -signal.SIGKILL, rb"edgedb: \d+ of 60 lines are done already\n"),
    )
    for stop, code, words in ends:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()  # a record is kept
        process.send_signal(stop)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        assert re.fullmatch(words, said), said
        assert not (tmp_path / "out.jsonl").exists()
        n = len(part.read_bytes().splitlines()) - 1
        assert n >= done + 5
        done = n
    for name in ("out.jsonl", "whole.jsonl"):
        last = subprocess.run(
            [sys.executable, "-m", "edgedb", *command[3:5], name, *command[6:]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
        )
        assert last.returncode == 3, last.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# Says on standard output when a record is kept, and gives a signal the time to come.
_SLOW = """
import time
from edgedb.cli.commands import main
from edgedb.jobs.results import Results
add = Results.add
def slow(self, line, record):
    add(self, line, record)
    print("kept", flush=True)
    time.sleep(0.1)
Results.add = slow
main()
"""
