"""Chats in a pseudo-terminal or a pipe, with a model that needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from terminal import Terminal

# A model that takes its time, 10 ms a token when decoding and 5 when reading: the tiny one would be
# done before a key is pressed.
_SLOW = """
import time
from edgedb.cli.commands import main
from edgedb.model.network import Network
read = Network.read
def slow(self, readings, state):
    n = sum(len(reading.tokens) for reading in readings)
    time.sleep(0.01 if n == 1 else 0.005 * n)
    return read(self, readings, state)
Network.read = slow
main(prog_name="edgedb")
"""
FIVE = ["--max-tokens", "5", "--temperature", "0"]
# The line editor switches bracketed paste on when it begins to read.
READY = r"\x1b\[\?2004h"
CONTROL = r"\x1b\[[0-9;?]*[A-Za-z]"
_PROGRESS = r"\[[#.]*\] \d+ of \d+ tokens read"
CUT = r"cut after\s+5\s+tokens"


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH")}
    chosen = {"EDGEDB_BACKEND": "numpy", "XDG_STATE_HOME": str(tmp_path / "state")}
    return kept | chosen | extra


def start(
    tmp_path: Path,
    model: Path,
    *options: str,
    slow: bool = False,
    ready: str = READY,
    columns: int = 80,
    **env: str,
) -> Terminal:
    """A chat that waits for its first message."""
    program = ["-c", _SLOW] if slow else ["-m", "edgedb"]
    command = [sys.executable, *program, "chat", str(model), *options]
    terminal = Terminal(command, environment(tmp_path, **env), 20, columns)
    terminal.expect(r"tiny: numpy.*context[^\n]*\n?[^\n]*for\s+commands")
    terminal.expect(ready)
    return terminal


def begin(chat: Terminal, end_of_message: str) -> None:
    """Wait for the first letter of the answer to a message that was just sent."""
    chat.expect(end_of_message)
    chat.expect(r"\x1b\[\?2004l")
    chat.expect(rf"{READY}({CONTROL}|{_PROGRESS}|\s)*[^\s\x1b\[]")


def say(chat: Terminal, line: str, expected: str) -> str:
    """Send a line, wait for what it shall print and for the next prompt; all that came."""
    before = chat.position
    chat.send(line + "\r")
    chat.expect(expected)
    chat.expect(READY)
    return chat.text[before : chat.position]


def leave(chat: Terminal) -> None:
    chat.send("/exit\r")
    assert chat.finish() == 0


def run_piped(
    tmp_path: Path, model: Path, text: bytes, *options: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "edgedb", "chat", str(model), *options],
        input=text,
        capture_output=True,
        env=environment(tmp_path),
        timeout=60,
    )
