"""README.md: each line of the first screen runs, and all links of the pages lead somewhere."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from chats import CONTROL, READY, environment, leave, say
from checkpoints import write_hf
from click.testing import CliRunner
from fake_hub import FakeHub
from places import ROOT
from terminal import Terminal
from tiny_tokenizers import CHATML

from edgedb.cli import commands, pull, talk
from edgedb.hub.modelfiles import DEFAULT_NAMES
from edgedb.ops import library

if sys.version_info >= (3, 11):
    import tomllib

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS, TRANSCRIPT = re.findall(r"^```\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)[:2]
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
LINES = [line.partition("#")[0].strip() for line in COMMANDS.splitlines()]
HUB = "Qwen/Qwen3-0.6B"
# What the first screen's commands are given: a line to answer, and that is all.
TYPED = "Hi\n"


@pytest.fixture
def prepared(
    request: pytest.FixtureRequest,
    hub: FakeHub,
    tiny_bpe: bytes,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clone's folder with small models in the places of those that are named."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / DEFAULT_NAMES[0]).symlink_to(tiny_model)
    if "generate" in request.node.name:  # what the line before has made
        (tmp_path / "my-model.dbb").symlink_to(tiny_model)
    folder = write_hf(tmp_path / "CHECKPOINT", tiny_bpe)
    (folder / "chat_template.jinja").write_text(CHATML)
    hub.put(HUB, {path.name: path.read_bytes() for path in folder.iterdir()})
    monkeypatch.setattr(talk, "_terminal", lambda: True)
    monkeypatch.setattr(pull.click, "confirm", lambda question, **_: True)
    monkeypatch.setenv("EDGEDB_BACKEND", "native" if library.available()[0] else "numpy")


SERVE = "edgedb serve"


@pytest.mark.parametrize(
    "line", [line for line in LINES if line.startswith("edgedb ") and line != SERVE]
)
def test_a_command_of_the_first_screen_runs(prepared: None, line: str, tmp_path: Path) -> None:
    arguments = shlex.split(line)[1:]
    done = CliRunner().invoke(commands.main, arguments, input=TYPED)
    assert done.exit_code == 0, done.output + done.stderr
    if arguments[0] == "convert":
        assert (tmp_path / arguments[-1]).is_file()
    if HUB in arguments:
        assert list(tmp_path.glob(f"data/edgedb/models/{HUB.replace('/', '--')}/*.dbb"))


def test_the_server_of_the_first_screen_answers(prepared: None) -> None:
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package, reason="needs pip install '.[serve]'")
    assert SERVE in LINES and "http://127.0.0.1:8080" in COMMANDS
    command = [sys.executable, "-m", *SERVE.split(), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = re.search(r"listening on (http://127.0.0.1:\d+)\n", server.stderr.readline())
        assert address
        server.stderr.readline()  # that it is ready
        try:
            with urlopen(f"{address[1]}/v1/models") as answer:
                assert DEFAULT_NAMES[0].removesuffix(".dbb") in answer.read().decode()
            with urlopen(address[1]) as page:
                assert "<title>edgedb</title>" in page.read().decode()
        finally:
            server.send_signal(signal.SIGTERM)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib of Python 3.11")
def test_what_is_installed_is_there() -> None:
    (install,) = (line for line in LINES if line.startswith("pip "))
    environment = [line for line in LINES if line.startswith("python3 -m venv ")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"'\.\[(.*)\]'", install)
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    python = project["requires-python"].removeprefix(">=")
    assert f"Python {python} or newer" in COMMANDS
    assert len(LINES) == len(environment) + 1 + sum(line.startswith("edgedb ") for line in LINES)


@pytest.mark.skipif(not library.available()[0], reason="needs the C library")
def test_the_conversation_is_what_a_terminal_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    typed, greeting, remark, *_ = TRANSCRIPT.splitlines()
    said = re.findall(r"^> (.*)\n((?:[^>\n].*\n)+)", TRANSCRIPT, re.MULTILINE)
    assert len(said) >= 2
    command = [sys.executable, "-m", "edgedb", *shlex.split(typed)[2:]]
    env = environment(tmp_path, EDGEDB_BACKEND="native")
    with Terminal(command, env, timeout=30, columns=300) as chat:
        first = re.sub("native.*threads", "native.*", re.escape(greeting))
        chat.expect(rf"{first}({CONTROL})*\r\n({CONTROL})*{re.escape(remark)}({CONTROL})*\r\n")
        chat.expect(READY)
        for question, answer in said:
            last = answer.split()[-1]
            shown = re.sub(CONTROL, "", say(chat, question, re.escape(last)))
            assert " ".join(answer.split()) in " ".join(shown.split())
        leave(chat)


@pytest.mark.skipif(not library.available()[0], reason="numpy takes its time")
def test_the_lines_of_python_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    assert len(lines) <= 6
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 30


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the titles of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def test_nothing_is_installed_from_an_index_that_has_it_not() -> None:
    """The package is on none: a clone, a wheel or the name of what is missing is said instead."""
    files = [
        *PAGES,
        *(path for folder in ("edgedb", "tests") for path in ROOT.glob(f"{folder}/**/*.py")),
    ]
    wanted = re.compile(r"pip install[^\n]*edgedb-llm")
    assert not [
        p.name for p in files if p != Path(__file__) and wanted.search(p.read_text("utf-8"))
    ]
