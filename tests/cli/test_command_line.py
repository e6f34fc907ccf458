"""What is no fault of a command ends it with one line and 2, whatever its streams and limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from edgedb import EdgeDBError
from edgedb.cli.command_line import command_line

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")

# Commands by what they use: standard output at once, at the end, input, or error alone.
COMMANDS = {
    "help": "-m edgedb --help",
    "info": "-m edgedb info {model}",
    "generate": "-m edgedb generate {model} -p Hi -n 3 --stats",
    "chat": "-m edgedb chat {model} -p Hi -n 3",
    "perplexity": "-m edgedb eval perplexity {model} {text} --window 32 --max-windows 1",
    "a tool's help": "-m tools.curves --help",
    "a click tool's help": "-m tools.export --help",
}


def run(command: str, redirection: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"EDGEDB_BACKEND": "numpy"}
    return subprocess.run(
        ["sh", "-c", f"{before}exec {sys.executable} {command} {redirection}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )


@pytest.fixture
def paths(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 30)
    return {"model": tiny_model, "text": text}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")]
)
def test_an_output_that_takes_nothing(
    command: str, redirection: str, reason: str, paths: dict[str, Path]
) -> None:
    done = run(COMMANDS[command].format(**paths), redirection)
    prefix = "error" if "tool" in command else "edgedb"
    expected = f"{prefix}: standard output cannot be written: {reason}\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_remarks_that_are_lost_end_nothing(redirection: str, paths: dict[str, Path]) -> None:
    done = run(COMMANDS["generate"].format(**paths), redirection)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    for command in (
        "-m edgedb generate nowhere.dbb -p Hi",
        "-m edgedb convert nowhere out.dbb",
        "-m tools.export nowhere out.dbb",
    ):
        done = run(command, redirection)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("command", ["generate {model}", "chat {model}"])
def test_an_input_that_is_closed(command: str, paths: dict[str, Path]) -> None:
    done = run(f"-m edgedb {command.format(**paths)}", "<&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgedb: standard input is closed\n"


def test_a_closed_stream_is_no_files_number(tmp_path: Path) -> None:
    """Else what a library says on standard error would be in the file that got its number."""
    code = (
        "import os; from edgedb.cli.command_line import command_line\n"
        "with command_line('x'):\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        file.write(str(file.fileno()))\n"
    )
    (tmp_path / "code.py").write_text(code)
    run(str(tmp_path / "code.py"), "<&- >&- 2>&-", before="PYTHONPATH=. ")
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize(
    "command", ["-m edgedb generate {model} -p Hi", "-m edgedb convert a b", "-m tools.export a b"]
)
def test_too_little_memory_to_import_numpy(command: str, paths: dict[str, Path]) -> None:
    done = run(command.format(**paths), "", before="ulimit -v 60000; ")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not enough memory" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (EdgeDBError("a\nb"), 2, "x: a\\nb\n"),
        (MemoryError("Unable to allocate 9 GiB"), 2, "x: not enough memory; take a smaller"),
        (RuntimeError("can't start new thread"), 2, "x: the system lets this process start no"),
        (ImportError("a.so: failed to map segment from shared object"), 2, "x: not enough memory"),
        (PermissionError(13, "Permission denied", "file"), 2, "x: file: Permission denied\n"),
        (OSError(5, "Input/output error"), 2, "x: Input/output error\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_errors_of_the_world(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised, command_line("x"):
        raise error
    shown = capsys.readouterr().err
    assert raised.value.code == status
    assert shown.startswith(line) and shown.count("\n") == (1 if line else 0)


@pytest.mark.parametrize("error", [ValueError("a fault"), RuntimeError("x"), ImportError("y")])
def test_faults_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, command_line("x"):
        raise error
    assert raised.value is error


def test_a_reader_that_goes_away(paths: dict[str, Path]) -> None:
    command = f"{sys.executable} -m edgedb generate {paths['model']} -p Hi -n 400 --seed 1"
    code = f"{command} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
