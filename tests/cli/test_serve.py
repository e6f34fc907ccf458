"""``edgedb serve`` as a command: what it refuses, how it begins and ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgedb.cli import commands as cli


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["serve", *map(str, arguments)])


@pytest.fixture(autouse=True)
def packages() -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is not loopback: give --api-key"),
        (["--api-key", ""], "a key is empty"),
        (["--api-key-file", "nowhere"], "nowhere: No such file"),
        (["--api-key-file", "empty"], "empty: there is no key in it"),
        (["--host", "no.such.host.invalid", "--no-auth"], "cannot be served"),
        (["no-such-model", "--port", "0"], "no-such-model"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("# none\n\n")
    result = run(*arguments)
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 2 and last.startswith("edgedb: ") and words in last


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", taken.getsockname()[1])
    assert result.exit_code == 2 and "cannot be served: Address already in use" in result.stderr


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgedb.serve.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run()
    assert result.exit_code == 2 and "pip install" in result.stderr and "serve" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it(tiny_model: Path, number: int, status: int) -> None:
    command = [sys.executable, "-m", "edgedb", "serve", str(tiny_model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", process.stderr.readline())
            assert found
            assert "ready" in process.stderr.readline()
            with urllib.request.urlopen(found[1] + "/health") as answer:
                assert answer.status == 200
            process.send_signal(number)
            assert process.wait(20) == status
            assert process.stderr.read() == ""
        finally:
            process.kill()
