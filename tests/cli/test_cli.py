"""The command line: every command, its errors, and its documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from places import ROOT

import edgedb
from edgedb.chat import lineedit
from edgedb.choose.sampling import SamplingParams
from edgedb.cli import commands as cli
from edgedb.cli.measure import evaluate
from edgedb.hub import modelfiles
from edgedb.run import engine

DOCS = ROOT / "docs" / "cli.md"
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("EDGEDB_BACKEND", "numpy")
    monkeypatch.delenv("EDGEDB_ISA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("EDGEDB_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, text: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=text)

    return invoke


def refused(result: Result, message: str) -> None:
    """Exit code 2 and one line, nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("edgedb: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_generate_continues_the_text(run: Run, tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, backend="numpy")
    expected = model.generate("Once upon", max_tokens=6, temperature=0).text
    arguments = ["generate", tiny_model, "-n", "6", "--temperature", "0"]
    Path("prompt.txt").write_text("Once upon\n")
    for result in (
        run(*arguments, "--prompt", "Once upon"),
        run(*arguments, "--file", "prompt.txt"),
        run(*arguments, "--file", "-", text="Once upon\r\n"),
        run(*arguments, text="Once upon"),
    ):
        assert result.exit_code == 0, result.output
        assert result.stdout.rstrip() == expected.rstrip()
        assert result.stderr == ""


def test_generate_with_the_chat_template(run: Run, tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, backend="numpy")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    expected = model.chat(messages, max_tokens=6, temperature=0).text
    result = run(
        *("generate", tiny_model, "-p", "Hi", "--chat", "--system", "S", "-n", 6),
        *("--temperature", 0, "--stats"),
    )
    assert result.stdout.rstrip() == expected.rstrip()
    assert re.search(r"answer \d tokens in", result.stderr)


def test_variables_reach_the_chat_template(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spied(model: edgedb.Model, messages: Any, **options: Any) -> str:
        seen.append(options["chat_template_kwargs"])
        return "Hi"

    monkeypatch.setattr(edgedb.Model, "chat_text", spied)
    variables = ["--chat-template-kwargs", '{"enable_thinking": false}', "-n", 1]
    assert run("generate", tiny_model, "-p", "Hi", "--chat", *variables).exit_code == 0
    assert run("chat", tiny_model, "-p", "Hi", *variables).exit_code == 0
    assert seen and all(given == {"enable_thinking": False} for given in seen)


def test_a_seed_repeats(run: Run, tiny_model: Path) -> None:
    arguments = ["generate", tiny_model, "-p", "Hi", "-n", 20, "--temperature", 2, "--seed"]
    first, again, other = (run(*arguments, seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_stop_strings(run: Run, tiny_model: Path) -> None:
    arguments = ["generate", tiny_model, "-p", "Hi", "-n", 30, "--temperature", 2, "--seed", 5]
    text = run(*arguments).stdout
    stop = text[4:6]
    assert run(*arguments, "--stop", stop).stdout.rstrip("\n") == text[: text.index(stop)].rstrip(
        "\n"
    )


def test_info_of_a_model(run: Run, tiny_model: Path) -> None:
    result = run("info", tiny_model)
    assert result.exit_code == 0
    for words in ("bits a weight", "zero bits", "random weights", "backend  numpy", "layers"):
        assert words in result.stdout
    document = json.loads(run("info", tiny_model, "--json").stdout)
    assert document["config"]["n_layers"] == 2
    assert document["runtime"]["backend"] == "numpy"
    assert sum(document["bytes"].values()) == tiny_model.stat().st_size


def test_info_of_the_machine(run: Run) -> None:
    result = run("info")
    assert result.exit_code == 0
    assert "asked for with EDGEDB_BACKEND" in result.stdout
    runtime = json.loads(run("info", "--json").stdout)["runtime"]
    assert [b["name"] for b in runtime["backends"]] == ["native", "numba", "numpy"]
    assert runtime["version"] == edgedb.__version__


def test_perplexity(run: Run, tiny_model: Path) -> None:
    Path("text.txt").write_text("What is the capital of France? " * 20)
    arguments = ["eval", "perplexity", tiny_model, "text.txt", "--window", 64, "--max-windows", 2]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "2 independent windows of 64 tokens, no BOS" in result.stdout
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["n_scored"] == 2 * 63
    assert f"{document['perplexity']:.4f}" in result.stdout


def test_kl(run: Run, tiny_model: Path) -> None:
    Path("text.txt").write_text("the cat sat on the mat and looked at the moon. " * 20)
    written = run("eval", "base", tiny_model, "text.txt", "base.kld", "--window", 64)
    assert written.stdout.startswith("base.kld: ")
    result = run("eval", "kl", tiny_model, "base.kld", "--max-windows", 2)
    document = json.loads(
        run("eval", "kl", tiny_model, "base.kld", "--max-windows", 2, "--json").stdout
    )
    assert document["n_windows"] == 2
    assert document["same_top"] > 0.9
    assert "nats a token" in result.stdout
    assert "2 independent windows of 64 tokens" in result.stdout
    refused(run("eval", "kl", tiny_model, "text.txt"), "text.txt is no file of a teacher's logits")


def test_choices(run: Run, tiny_model: Path) -> None:
    entry = {"context": "What is the capital of France?", "choices": ["Paris", "Rome"], "gold": 0}
    Path("q.jsonl").write_text((json.dumps(entry) + "\n") * 3)
    result = run("eval", "choices", tiny_model, "q.jsonl", "--max-questions", 2)
    assert result.exit_code == 0, result.output
    assert "2 questions" in result.stdout
    document = json.loads(run("eval", "choices", tiny_model, "q.jsonl", "--json").stdout)
    assert document["q.jsonl"]["n_questions"] == 3
    assert document["q.jsonl"]["accuracy"] in (0, 1)
    Path("q.jsonl").write_text("nothing\n")
    refused(run("eval", "choices", tiny_model, "q.jsonl"), "q.jsonl, line 1")


def test_bench(run: Run, tiny_model: Path) -> None:
    arguments = ["bench", tiny_model, "--prompt", 8, "--decode", "2,4", "--repetitions", 1]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for test in ("pp8", "tg2", "tg4", "tokens/s"):
        assert test in result.stdout
    rows = json.loads(run(*arguments, "--output", "json").stdout)["rows"]
    assert [row["test"] for row in rows] == ["pp8", "tg2", "tg4"]


def test_chat_answers_a_pipe(run: Run, tiny_model: Path) -> None:
    result = run("chat", tiny_model, "-n", 5, text="Hi\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n")


def test_chat_takes_the_default_model(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    monkeypatch.setattr(modelfiles, "CHECKOUT", checkout)
    refused(run("chat", text="Hi\n"), "no model is on this disk: edgedb pull OWNER/NAME gets one")
    Path("models").mkdir()
    Path("models/mine.dbb").symlink_to(tiny_model)
    refused(run("chat", text="Hi\n"), "name a model; on this disk: mine")
    first, second = modelfiles.DEFAULT_NAMES
    for path in (checkout / "models" / second, checkout / "models" / first, Path("models", first)):
        path.parent.mkdir(parents=True, exist_ok=True)
        (checkout / "pyproject.toml").touch()
        path.symlink_to(tiny_model)
        assert run("chat", "-n", 3, text="Hi\n").exit_code == 0
        assert modelfiles.default_model() == path


def test_models_by_name(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfiles, "CHECKOUT", Path("nowhere"))
    Path("models").mkdir()
    Path("models/small.dbb").symlink_to(tiny_model)
    for name in ("small", "small.dbb", "models/small.dbb"):
        assert run("chat", "--model", name, "-n", 3, text="Hi\n").exit_code == 0
        assert run("generate", name, "-n", 3, "-p", "Hi").exit_code == 0
        assert run("info", name, "--json").exit_code == 0
        quick = ("--prompt", "2", "--decode", "1", "--repetitions", 1)
        assert "| small |" in run("bench", name, *quick).stdout
    assert [path.name for path in modelfiles.known_models()] == ["small.dbb"]
    assert "once" in run("chat", "small", "--model", "small").stderr
    refused(run("chat", "large", text="Hi\n"), "large")
    Path("data/edgedb").mkdir(parents=True)
    Path("models").rename("data/edgedb/models")
    assert modelfiles.find_model("small") == Path.cwd() / "data/edgedb/models/small.dbb"
    Path("data/edgedb/models/gone.dbb").symlink_to("nowhere")
    assert [path.name for path in modelfiles.known_models()] == ["small.dbb"]
    monkeypatch.setenv("EDGEDB_MODELS", "nowhere:elsewhere")
    refused(run("chat", "small", text="Hi\n"), "small")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("EDGEDB_MODELS", "XDG_DATA_HOME", "XDG_STATE_HOME", "EDGEDB_NO_HISTORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert modelfiles.configured_folders() == [Path("models")]
    assert lineedit.history_path() is None


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-this-name/model.dbb"])
def test_names_that_no_file_can_have(run: Run, tiny_model: Path, name: str) -> None:
    refused(run("generate", name, "-p", "Hi"), name)
    refused(run("chat", tiny_model, "--session", name, "-p", "Hi"), name)


@pytest.mark.parametrize("command", ["chat", "generate", "info", "perplexity", "bench"])
@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "gguf", "text"])
def test_files_that_are_no_model(run: Run, command: str, kind: str) -> None:
    path = Path("model.dbb")
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        content = {"empty": b"", "gguf": b"GGUF" + bytes(100), "text": b"hello " * 50}[kind]
        path.write_bytes(content)
    Path("text.txt").write_text("some text")
    arguments = {"perplexity": ["eval", "perplexity", path, "text.txt"]}.get(
        command, [command, path]
    )
    refused(run(*arguments, text="Hi\n"), "model.dbb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--seed", "-4"], "seed"),
        (["--stop", ""], "stop[0] = '': expected a text that is not empty"),
        (["--max-tokens", "-1"], "max_tokens"),
        (["--context", "100000"], "context"),
        (["--threads", "0"], "threads"),
        (["--isa", "avx2"], "native"),
        (["--chat", "--chat-template-kwargs", '{"messages": 1}'], "messages is an option"),
    ],
)
def test_values_out_of_range(run: Run, tiny_model: Path, options: list[str], message: str) -> None:
    refused(run("generate", tiny_model, "-p", "Hi", *options), message)


def test_prompts_that_cannot_be(run: Run, tiny_model: Path) -> None:
    refused(run("generate", tiny_model, "-p", "x " * 1000), "context")
    refused(run("generate", tiny_model, "-p", ""), "empty")
    refused(run("generate", tiny_model, "-f", "nowhere.txt"), "nowhere.txt")
    refused(run("generate", tiny_model, text=b"caf\xe9"), "UTF-8")
    refused(run("eval", "perplexity", tiny_model, "."), ".: ")


def test_options_that_contradict_each_other(run: Run, tiny_model: Path) -> None:
    assert "either" in run("generate", tiny_model, "-p", "a", "-f", "b").stderr
    assert "--chat" in run("generate", tiny_model, "-p", "a", "--system", "b").stderr
    variables = ["--chat-template-kwargs", '{"a": 1}']
    assert "--chat" in run("generate", tiny_model, "-p", "a", *variables).stderr
    assert "not a JSON object" in run("chat", tiny_model, variables[0], "a").stderr
    refused(run("bench"), "--shape")
    refused(run("bench", tiny_model, "--shape", "llama-1.1b"), "--shape")
    refused(run("bench", "--shape", "llama-9b"), "llama-9b")
    for pairs in (0, 1.25, 9, "nan"):
        refused(run("bench", "--shape", "smollm2-135m", "--pairs", pairs), f"pairs = {pairs}")
    assert run("bench", tiny_model, "--prompt", "1,x").exit_code == 2


def test_an_interrupt_is_quiet(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Session, "_decode", interrupted)
    result = run("generate", tiny_model, "-p", "Hi")
    assert (result.exit_code, result.output) == (130, "")


def test_a_reader_that_goes_away_is_quiet(tiny_model: Path) -> None:
    command = f"{sys.executable} -m edgedb generate {tiny_model} -p Hi -n 400 --seed 1 | head -c 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=os.environ | {"EDGEDB_BACKEND": "numpy"}
    )
    assert done.stderr == b""


def test_sampling_options_are_those_of_the_library() -> None:
    for command, changed in (
        (cli.generate, {}),
        (cli.chat, {"temperature": 0.2, "repetition_penalty": 1.1}),
    ):
        params = command.get_params(click.Context(command))
        options = {option.name: option for option in params if isinstance(option, click.Option)}
        for name, value in (vars(SamplingParams()) | changed).items():
            default = options[name].default
            # Click's word for "no default" is a value of its own.
            assert default == value or (value is None and not isinstance(default, (int, str))), name
            assert options[name].help, f"{name} needs a help text in edgedb/choose/settings.py"


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import edgedb", {"edgedb"}),
        (
            "from edgedb.cli.commands import main; main(['--help'], standalone_mode=False)",
            {"edgedb", "click"},
        ),
    ],
)
def test_a_start_imports_no_more_than_it_needs(code: str, needed: set[str]) -> None:
    """No engine, and no package that may be missing."""
    told = "import sys; before = set(sys.modules)\n" + code
    told += "\nprint(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert imported - set(sys.stdlib_module_names) == needed


def test_help_texts_in_the_documentation() -> None:
    """``EDGEDB_WRITE_DOCS=1`` writes them anew."""
    text = DOCS.read_text(encoding="utf-8")
    pattern = re.compile(r"```text\n\$ edgedb((?: [a-z]+)*) --help\n(.*?)```", re.DOTALL)

    def help_of(match: re.Match[str]) -> str:
        arguments = [*match[1].split(), "--help"]
        result = CliRunner().invoke(cli.main, arguments, prog_name="edgedb", terminal_width=80)
        command = " ".join(["$ edgedb", *arguments])
        return f"```text\n{command}\n{result.output}```"

    written = {match[1].strip() for match in pattern.finditer(text)}
    measures = {f"eval {name}" for name in evaluate.commands}
    assert written == {"", *cli.main.commands, *measures} - {"eval"}
    current = pattern.sub(help_of, text)
    if os.environ.get("EDGEDB_WRITE_DOCS"):
        DOCS.write_text(current, encoding="utf-8")
    else:
        assert current == text


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("run model.dbb", "'chat'"),
        ("ls", "'models'"),
        ("convrt", "'convert'"),
        ("chat --temp 1", "'--temperature'"),
    ],
)
def test_words_of_other_programs_are_understood(line: str, meant: str) -> None:
    done = CliRunner().invoke(cli.main, line.split())
    assert done.exit_code == 2 and f"Did you mean {meant}?" in done.stderr


@pytest.mark.parametrize("group", [[], ["eval"]])
def test_a_group_alone_explains_itself_in_lines(group: list[str]) -> None:
    done = CliRunner().invoke(cli.main, group)
    shown = done.stdout + done.stderr
    assert shown.startswith("Usage: ") and "\n\nCommands:\n" in shown
