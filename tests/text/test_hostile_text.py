"""Every text of a model file, and its name, by somebody who writes to the reader's terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_bytes as gguf
import numpy as np
import pytest
from chats import CUT, FIVE, READY, environment, leave, say
from checkpoints import weights, write_hf
from click.testing import CliRunner
from dbb_files import edit_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from terminal import Terminal
from test_display import LONG, TEXTS, is_one_line

import edgedb
from edgedb.cli import commands as cli
from edgedb.display import LINE_CHARS, NAME_CHARS
from edgedb.errors import EdgeDBError
from edgedb.model.dbb import read_dbb

# Title, colours by two spellings, letters from right to left, and lines that look like ours.
EVIL = "\x1b]0;EVIL\x07\x1b[31m\x9b31m\u202e\u2028forged\nforged  1\r\x7f"
NAME = "m\x1b]0;EVIL\x07\x9b31m\u202e\u2028forged\nforged.dbb"
_SEEN = re.compile(r"\x1b\]|\x1b\[31m|\x9b|\x07|\x7f|[\u202a-\u202e\u2066-\u2069\u2028\u2029]")
_FORGED = re.compile(r"(?m)^\s*forged")

# The command again and again in one process, which says how each ended.
_ALL = """
import json, sys
from edgedb.cli.commands import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="edgedb")
    except SystemExit as end:
        print("end of", end.code, file=sys.stderr)
"""

Run = Callable[..., subprocess.CompletedProcess[bytes]]
Refusals = Callable[..., None]


def check(text: str, most: int = 1 << 16) -> str:
    """``text`` came from a command; it may hold no character of ``EVIL`` that does anything."""
    found = _SEEN.search(text) or _FORGED.search(text)
    assert not found, repr(text[max(0, found.start() - 80) : found.end() + 20])
    assert len(text) < most, f"{len(text)} characters"
    return text


def make(source: Path, folder: Path, name: str = NAME, **changes: Any) -> Path:
    """A copy of the model whose metadata are changed: ``quantization`` and ``tokenizer``."""

    def header(document: dict[str, Any]) -> None:
        for key, values in changes.items():
            known = json.loads(document["__metadata__"][key])
            document["__metadata__"][key] = json.dumps({**known, **values})

    folder.mkdir(exist_ok=True)
    return edit_file(source, folder / name, header)


@pytest.fixture(scope="module")
def hostile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads and answers."""
    nested: Any = 1.5
    for _ in range(20):
        nested = {EVIL: nested}
    facts = {EVIL: EVIL, "k" * 2_000_000: "v" * 2_000_000, "quality": {"x" * 1_000_000: nested}}
    facts["quality"] |= {f"{i}{EVIL}": {EVIL: EVIL} for i in range(3000)}
    facts |= {f"{i}{EVIL}": i for i in range(3000)}
    spec = {"special_tokens": {EVIL: EVIL, "bos_token": EVIL}}
    return make(tiny_model, tmp_path_factory.mktemp("a"), quantization=facts, tokenizer=spec)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*arguments: object, **env: str) -> subprocess.CompletedProcess[bytes]:
        program = [sys.executable, "-m", "edgedb", *map(str, arguments)]
        variables = environment(tmp_path, **env)
        return subprocess.run(
            program, capture_output=True, env=variables, timeout=60, cwd=tmp_path, input=b""
        )

    return command


@pytest.fixture
def refusals(tmp_path: Path) -> Refusals:
    """Runs the command with each list of arguments, all of which it must refuse in one line."""

    def command(calls: list[list[str]], **env: str) -> None:
        program = [sys.executable, "-c", _ALL, json.dumps(calls)]
        done = subprocess.run(
            program, capture_output=True, env=environment(tmp_path, **env), timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0 and not done.stdout, done
        said = done.stderr.decode().split("end of 2\n")
        assert len(said) == len(calls) + 1
        for call, text in zip(calls, said, strict=False):
            usage = re.sub(r"(?s)^Usage:.*\n\n(?=Error: )", "", text)
            assert usage.count("\n") == 1, (call, text)
            check(text, most=1000)

    return command


def test_info(run: Run, hostile: Path) -> None:
    done = run("info", hostile)
    assert done.returncode == 0 and not done.stderr
    text = check(done.stdout.decode())
    assert r"\x1b]0;EVIL\x07" in text and "only the first 100 are shown" in text


def test_info_as_json_stays_json(run: Run, hostile: Path) -> None:
    done = run("info", hostile, "--json")
    assert done.returncode == 0
    check(done.stdout.decode(), most=1 << 24)
    assert json.loads(done.stdout)["quantization"][EVIL] == EVIL


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS | LONG,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@given(st.dictionaries(TEXTS, JSON), JSON, st.dictionaries(TEXTS, TEXTS), TEXTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_metadata(
    tiny_model: Path,
    tmp_path: Path,
    facts: dict[str, Any],
    quality: Any,
    special: dict[str, str],
    name: str,
) -> None:
    """A file is shown or refused, and nothing in it that is not seen reaches the terminal."""
    changes = {"quantization": {**facts, "quality": quality}, "tokenizer": {**special}}
    valid = {"quantization": changes["quantization"], "tokenizer": {"special_tokens": special}}
    for metadata in (changes, valid):
        model = make(tiny_model, tmp_path, "m.dbb", **metadata)
        named = f"no{name}".replace("\0", "")
        for path, code in ((str(model), 0 if metadata is valid else None), (named, 2)):
            shown = CliRunner().invoke(cli.main, ["info", path, "--backend", "numpy"], color=True)
            assert shown.exit_code in ((code,) if code is not None else (0, 2)), shown.output
            for line in shown.output.split("\n"):
                assert is_one_line(line, NAME_CHARS + LINE_CHARS + 20), line


def test_measurements(run: Run, hostile: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl.")
    questions = tmp_path / NAME
    questions.write_text(json.dumps({"context": EVIL, "choices": ["a", EVIL], "gold": 1}))
    few = ("--prompt", 8, "--decode", 8, "--repetitions", 1)
    for arguments in (
        ("eval", "perplexity", hostile, text, "--window", 16),
        ("eval", "choices", hostile, questions),
        *(("bench", hostile, *few, "--output", form) for form in ("md", "csv", "json")),
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        check(done.stdout.decode() + done.stderr.decode())


def test_a_template_that_complains(refusals: Refusals, tiny_model: Path, tmp_path: Path) -> None:
    evil = json.dumps(EVIL)
    calls = []
    for number, template in enumerate(
        (
            f"{{{{ raise_exception({evil}) }}}}",
            f"{{{{ raise_exception({evil} * 20000) }}}}",
            f"{{{{ {evil} + 1 }}}}",
            f"{{{{ {{}}[{evil}].x.y }}}}",
            f"{{% {EVIL} %}}",
        )
    ):
        name = f"{number}{NAME}"
        model = str(make(tiny_model, tmp_path, name, tokenizer={"chat_template": template}))
        calls += [["chat", model, "-p", "Hi"], ["generate", model, "--chat", "-p", "Hi"]]
    refusals(calls)


def test_damaged_files(tiny_model: Path, tmp_path: Path) -> None:
    """Each text of the header where the reader quotes it."""

    def metadata(key: str, value: object) -> Callable[[dict[str, Any]], None]:
        return lambda document: document["__metadata__"].update({key: value})

    def tensor(entry: object) -> Callable[[dict[str, Any]], None]:
        return lambda document: document.update({EVIL * 50_000: entry})

    for change in (
        tensor(EVIL),
        tensor({"dtype": EVIL, "shape": [1], "data_offsets": [0, 1]}),
        tensor({"dtype": "U8", "shape": EVIL, "data_offsets": [0, 1]}),
        tensor({"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}),
        metadata("format", EVIL),
        metadata("version", EVIL),
        metadata(EVIL, 1),
        metadata("config", json.dumps({EVIL: 1})),
        metadata("tokenizer", json.dumps({EVIL: 1})),
        metadata("tokenizer", json.dumps({"kind": EVIL * 50_000})),
        metadata("tokenizer", json.dumps({"kind": "tokenizers", "bos_id": EVIL})),
        metadata("quantization", '{"a": 1, "a": ' + EVIL),
        metadata("quantization", json.dumps({EVIL: 1})[:-1] + ", " + json.dumps(EVIL) + ": 2}"),
        metadata("checksums", json.dumps({EVIL: EVIL})),
    ):
        with pytest.raises(EdgeDBError) as refused:
            read_dbb(edit_file(tiny_model, tmp_path / NAME, change))
        check(str(refused.value), most=LINE_CHARS + 1)


def test_names_and_variables(refusals: Refusals, hostile: Path, tmp_path: Path) -> None:
    questions, model = str(tmp_path / NAME), str(hostile)
    Path(questions).write_text(EVIL)
    refusals(
        [
            [EVIL],
            [f"--{EVIL}"],
            ["info", f"no such {NAME}"],
            ["info", str(tmp_path), EVIL],
            ["generate", model, "-f", NAME * 3],
            ["generate", model, "-p", "x", "--logit-bias", EVIL],
            ["chat", model, "-p", "x", "--session", questions],
            ["eval", "perplexity", model, f"no{NAME}"],
            ["eval", "choices", model, questions],
            ["bench", "--shape", EVIL],
        ]
    )
    refusals([["info"]], EDGEDB_BACKEND=EVIL)
    refusals([["info"]], EDGEDB_THREADS=EVIL)
    refusals([["info"]], EDGEDB_KERNEL=EVIL, EDGEDB_BACKEND="")
    refusals([["info"]], EDGEDB_ISA=EVIL, EDGEDB_BACKEND="")


def test_a_conversation(tmp_path: Path, hostile: Path) -> None:
    saved = tmp_path / f"s{NAME}"
    saved.write_text(json.dumps([{"role": r, "content": EVIL} for r in ("system", "user")]))
    command = [sys.executable, "-m", "edgedb", "chat", str(hostile), "--session", str(saved), *FIVE]
    with Terminal(command, environment(tmp_path, EDITOR=EVIL), 20, 300) as chat:
        chat.expect("for commands")
        chat.expect(READY)
        said = say(chat, "Hi", CUT) + say(chat, "/show messages", "assistant:")
        said += say(chat, "/show template", "for message in") + say(chat, "/system", "EVIL")
        assert _FORGED.search(said), "a text of several lines keeps them where it is shown as one"
        assert not _SEEN.search(chat.text)
        chat.text, chat.position = "", 0
        say(chat, "/show", "runs on")
        say(chat, "/model", "goes on with another")
        say(chat, "/context", "when full")
        say(chat, "/edit", "cannot run the editor|No closing")
        say(chat, "/undo", "took back")
        say(chat, "/undo", r"took back: .*EVIL")
        say(chat, f"/load {hostile.parent}/\t", "not a regular file")
        leave(chat)
        check(chat.text.replace("\r\n", "\n"))


def test_an_answer_on_a_terminal(tmp_path: Path, hostile: Path) -> None:
    """Its tokens are bytes like ESC; a pipe gets them as they are."""
    tokens = edgedb.load(hostile, backend="numpy").tokenize("\x1b]\x07", add_bos=False)
    bias = ",".join(f"{token}=1000" for token in tokens)
    arguments = ["-p", "Hi", "--logit-bias", bias, "--temperature", "1000", "--seed", "1"]
    arguments += ["--top-k", "3", "--top-p", "1", "--min-p", "0"]
    command = [sys.executable, "-m", "edgedb", "generate", str(hostile), "-n", "60", *arguments]
    variables = environment(tmp_path)
    piped = subprocess.run(command, capture_output=True, env=variables, timeout=60)
    assert b"\x1b]" in piped.stdout and b"\x07" in piped.stdout
    with Terminal(command, variables, 20) as terminal:
        assert terminal.finish() == 0
        assert "]" in check(terminal.text)


def test_bars_on_a_terminal(tmp_path: Path, hostile: Path) -> None:
    questions = tmp_path / f"[bold][red]{NAME}"
    questions.write_text('{"context": "a", "choices": ["b", "c"], "gold": 0}\n' * 50)
    command = [sys.executable, "-m", "edgedb", "eval", "choices", str(hostile), str(questions)]
    with Terminal(command, environment(tmp_path), 30, 200) as terminal:
        assert terminal.finish() == 0, terminal.text
        assert "[bold][red]m" in check(terminal.text.replace("\r\n", "\n"))


def test_an_export_on_a_terminal(tmp_path: Path, tiny_bpe: bytes) -> None:
    """Names of the folder, of settings that nobody knows, and of the file that is written."""
    source = write_hf(tmp_path / "[bold]" / NAME, tiny_bpe, **{EVIL: EVIL})
    out = tmp_path / f"[red]{NAME}"
    command = [sys.executable, "-m", "edgedb", "convert", str(source), str(out), "--method", "int8"]
    with Terminal(command, environment(tmp_path, PYTHONPATH=str(ROOT)), 30, 300) as terminal:
        assert terminal.finish() == 0, terminal.text
    shown = check(terminal.text.replace("\r\n", "\n"))
    assert "not known whether" in shown and r"[red]m\x1b]0;EVIL\x07" in shown


def test_checkpoints_that_are_refused(tmp_path: Path, tiny_bpe: bytes) -> None:
    """Each text of a checkpoint where its reader quotes it."""
    folder = tmp_path / NAME
    tensors = weights()
    cases: list[Path] = [
        write_hf(folder / "type", tiny_bpe, model_type=EVIL),
        write_hf(folder / "rope", tiny_bpe, rope_scaling={"type": EVIL, EVIL: 1}),
        write_hf(folder / "act", tiny_bpe, hidden_act=EVIL),
        write_hf(folder / "size", tiny_bpe, rms_norm_eps=EVIL * 50_000),
        write_hf(folder / "name", tiny_bpe, tensors={**tensors, EVIL: tensors["lm_head.weight"]}),
        write_hf(folder / "token", tiny_bpe.replace(b'"BPE"', json.dumps(EVIL).encode())),
        write_hf(folder / "other", tiny_bpe, tensors={EVIL: np.zeros(3, np.float32)}),
    ]
    head = [gguf.entry("general.architecture", gguf.STRING, EVIL)]
    for number, file in enumerate(
        (
            gguf.file(head),
            gguf.file([gguf.entry(EVIL, 77, b"")]),
            gguf.file([gguf.entry(EVIL * 50_000, gguf.STRING, EVIL), *head]),
            gguf.file([*head, gguf.entry(EVIL, gguf.U32, 1), gguf.entry(EVIL, gguf.U32, 1)]),
            gguf.file([], [gguf.tensor(EVIL, (2,), kind=99)]),
            gguf.file([], [gguf.tensor(EVIL, (2,), offset=1 << 60)]),
        )
    ):
        cases.append(tmp_path / f"{number}{NAME}.gguf")
        cases[-1].write_bytes(file)
    for case in cases:
        done = CliRunner().invoke(cli.main, ["convert", str(case), str(tmp_path / "out")])
        assert done.exit_code == 2, (case, done.output, done.exception)
        lines = [line for line in done.stderr.split("\n") if not line.startswith("warning: ")]
        assert len(lines) == 2 and lines[0].startswith("edgedb: "), done.stderr
        check(done.stderr, most=3000)
