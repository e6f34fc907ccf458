"""``--draft``: the same answers, and what is said of guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgedb.cli import commands as cli
from edgedb.measure import drafts, shapes
from edgedb.ops import library

Run = Callable[..., Result]

pytestmark = pytest.mark.skipif(
    not library.available()[0], reason="a draft needs the native backend"
)
GUESSES = r"\d+ guesses, \d+ right \(\d+%\)"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, text: str | None = None) -> Result:
        return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=text)

    return invoke


def test_generate(run: Run, tiny_model: Path, other_model: Path) -> None:
    arguments = ["generate", tiny_model, "-p", "Once", "-n", 40, "--seed", 1, "--stats"]
    plain = run(*arguments)
    for draft in (tiny_model, other_model):
        guided = run(*arguments, "--draft", draft)
        assert guided.exit_code == 0, guided.output
        assert guided.stdout == plain.stdout
        assert re.search(GUESSES, guided.stderr) and not re.search(GUESSES, plain.stderr)


def test_a_chat_and_names_of_models(run: Run, tiny_model: Path) -> None:
    Path("models").mkdir()
    for name in ("large", "small"):
        Path(f"models/{name}.dbb").symlink_to(tiny_model)
    arguments = ["chat", "large", "-n", 30, "--seed", 1, "--stats"]
    plain = run(*arguments, text="Hi\nHo\n")
    guided = run(*arguments, "--draft", "small", text="Hi\nHo\n")
    assert guided.exit_code == 0, guided.output
    assert guided.stdout == plain.stdout
    assert re.search(r"tokens? at [\d.,]+/s, \d+% of \d+ guesses right", guided.stderr)


def test_a_batch(run: Run, tiny_model: Path) -> None:
    lines = [{"prompt": f"Once {i}", "max_tokens": 30} for i in range(6)]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--model", tiny_model, "--parallel", 3]
    plain = run("batch", "in.jsonl", "a.jsonl", *arguments)
    guided = run("batch", "in.jsonl", "b.jsonl", *arguments, "--draft", tiny_model)
    assert plain.exit_code == guided.exit_code == 0, guided.output
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    assert re.search(GUESSES, guided.stderr)


@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_another_tokenizer_is_refused_in_a_line(
    run: Run, tiny_model: Path, sentencepiece_model: Path, command: str
) -> None:
    more = [] if command == "bench" else ["-p", "Hi"]
    result = run(command, tiny_model, *more, "--draft", sentencepiece_model)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and "no draft for tiny.dbb" in result.stderr


def test_bench_of_two_models(run: Run, tiny_model: Path, other_model: Path) -> None:
    arguments = ["bench", tiny_model, "--decode", "9,24", "--repetitions", 2, "-t", "1,2"]
    result = run(*arguments, "--draft", other_model, "--output", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["threads"], row["test"]) for row in rows] == [
        (n, f"temperature {t}") for n in (1, 2) for t in ("0", "0.7")
    ]
    assert all(len(row["ratios"]) == 2 and row["drafted"] >= row["accepted"] for row in rows)
    assert rows[0]["tokens"] <= 2 * 4 * 24  # repetitions, questions
    table = run(*arguments, "--draft", other_model).stdout
    assert "| without, tokens/s | with | ratio |" in table


def test_bench_at_an_acceptance(run: Run, tiny_model: Path, other_model: Path) -> None:
    arguments = ["bench", tiny_model, "--decode", 60, "--repetitions", 1, "-t", 1]
    more = ["--draft", other_model, "--acceptance", "0,1", "--output", "csv"]
    result = run(*arguments, *more)
    assert result.exit_code == 0, result.output
    header, *rows = [line.split(",") for line in result.stdout.splitlines()]
    found = [dict(zip(header, row, strict=False)) for row in rows]
    assert [row["test"] for row in found] == ["simulated 0", "simulated 1"]
    assert int(found[0]["accepted"]) == 0
    assert found[1]["accepted"] == found[1]["drafted"]


def test_bench_of_shapes(run: Run, monkeypatch: pytest.MonkeyPatch, long_model: Path) -> None:
    small: dict[str, Any] = {"smollm2-135m": drafts.read_dbb(long_model).config}
    monkeypatch.setattr(shapes, "SHAPES", small)
    arguments = ["bench", "--shape", "smollm2-135m", "--decode", 20, "--repetitions", 1, "-t", 1]
    result = run(*arguments, "--draft", "smollm2-135m", "--acceptance", 0.5, "--depth", 40)
    assert result.exit_code == 0, result.output
    assert "simulated 0.5" in result.stdout
    for wrong, message in (
        (["--draft", "smollm2-135m"], "--acceptance"),
        (["--draft", "llama-9b", "--acceptance", 0.5], "llama-9b"),
        (["--draft", "smollm2-135m", "--acceptance", 2], "acceptance"),
        (["--acceptance", 0.5], "--draft"),
        (["--draft", "smollm2-135m", "--acceptance", "x"], "list of numbers"),
    ):
        refusal = run(*arguments, *wrong)
        assert refusal.exit_code == 2 and message in refusal.stderr
