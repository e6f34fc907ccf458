"""The chat: driven through a pseudo-terminal, and its plain loop through pipes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Terminal

import edgedb
from edgedb import ContextFullError
from edgedb.chat import ChatOptions, Conversation
from edgedb.sampling import SamplingParams

# A model that takes its time: the tiny one would be done before a key is pressed.
SLOW = """
import sys, time
from edgedb import engine
from edgedb.cli import main
decode = engine.Session._decode
def slow(session, sampler):
    time.sleep(0.02)
    return decode(session, sampler)
engine.Session._decode = slow
main(prog_name="edgedb")
"""
FIVE = ["--max-tokens", "5", "--temperature", "0"]
# The line editor switches bracketed paste on when it begins to read.
READY = r"\x1b\[\?2004h"
CUT = r"cut after 5 tokens"
BACKEND = {"EDGEDB_BACKEND": "numpy"}  # starts at once, and needs no compiler


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH")}
    return kept | BACKEND | {"XDG_STATE_HOME": str(tmp_path / "state")} | extra


def start(tmp_path: Path, model: Path, *options: str, slow: bool = False, **env: str) -> Terminal:
    program = ["-c", SLOW] if slow else ["-m", "edgedb"]
    command = [sys.executable, *program, "chat", str(model), *options]
    terminal = Terminal(command, environment(tmp_path, **env))
    terminal.expect(r"tiny: numpy.*context.*/help for commands")
    terminal.expect(READY)
    return terminal


@pytest.fixture
def chat(tmp_path: Path, tiny_model: Path) -> Iterator[Terminal]:
    with start(tmp_path, tiny_model, *FIVE) as terminal:
        yield terminal


def test_question_answer_and_leave(chat: Terminal) -> None:
    chat.send("Hi there\r")
    chat.expect(CUT)
    chat.expect(READY)
    chat.send("And again\r")
    chat.expect(CUT)
    chat.expect(READY)
    chat.send("/exit\r")
    assert chat.finish() == 0


def test_ctrl_d_leaves(chat: Terminal) -> None:
    chat.send("\x04")
    assert chat.finish() == 0


def test_help_lists_every_command(chat: Terminal) -> None:
    chat.send("/help\r")
    for word in ("/help", "/clear", "/exit", "Alt-Enter", "Ctrl-C"):
        chat.expect(word)


def test_clear_and_unknown_commands(chat: Terminal) -> None:
    chat.send("/clear\r")
    chat.expect("begins anew")
    chat.send("/frobnicate now\r")
    chat.expect("no command /frobnicate")
    chat.send("/exit\r")
    assert chat.finish() == 0


def test_ctrl_c_at_the_prompt_hints_and_stays(chat: Terminal) -> None:
    chat.send("\x03")
    chat.expect("Ctrl-D or /exit leaves")
    chat.expect(READY)
    chat.send("half a mess\x03")
    time.sleep(0.2)
    chat.send("/exit\r")
    assert chat.finish() == 0, "Ctrl-C emptied the line"


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(tmp_path: Path, tiny_model: Path) -> None:
    options = ["--temperature", "1.5", "--seed", "1", "--max-tokens", "400"]
    with start(tmp_path, tiny_model, *options, slow=True) as chat:
        chat.send("Tell me everything\r")
        time.sleep(0.6)
        pressed = time.monotonic()
        chat.send("\x03")
        chat.expect(r"\(stopped\)")
        assert time.monotonic() - pressed < 1
        chat.expect(READY)
        chat.send("/exit\r")
        assert chat.finish() == 0


def test_pasted_lines_are_one_message(chat: Terminal) -> None:
    chat.send("\x1b[200~first line\nsecond line\x1b[201~")
    chat.expect("second line")
    chat.send("\r")
    chat.expect(CUT)
    chat.expect(READY)
    chat.send("/exit\r")
    assert chat.finish() == 0
    assert chat.text.count("cut after") == 1


def test_alt_enter_makes_a_line(chat: Terminal) -> None:
    chat.send("one\x1b\rtwo\r")
    chat.expect(CUT)
    chat.send("/exit\r")
    assert chat.finish() == 0
    assert chat.text.count("cut after") == 1


def test_a_full_context_is_said_and_can_be_cleared(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, "--context", "60") as chat:
        chat.send("x " * 60 + "\r")
        chat.expect(r"context of\s+60")
        chat.expect("/clear")
        chat.send("Hi\r")
        chat.expect(CUT)
        chat.send("/exit\r")
        assert chat.finish() == 0


def test_a_resized_window_does_not_disturb(chat: Terminal) -> None:
    chat.send("a long question that goes on")
    chat.resize(10, 20)
    chat.send(" and on\r")
    chat.expect(CUT.replace(" ", r"\s+"))
    chat.send("/exit\r")
    assert chat.finish() == 0


def test_history_is_kept_private_and_can_be_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "state" / "edgedb" / "history"
    for keep in (False, True):
        with start(tmp_path, tiny_model, *FIVE, EDGEDB_NO_HISTORY="" if keep else "1") as chat:
            chat.send("Remember me\r")
            chat.expect(CUT)
            chat.send("/exit\r")
            assert chat.finish() == 0
        assert path.exists() == keep
    assert "Remember me" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with start(tmp_path, tiny_model, *FIVE) as chat:
        chat.send("\x1b[A\x1b[A")
        chat.expect("Remember me")


def test_a_locale_without_unicode(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, LC_ALL="C", PYTHONUTF8="0") as chat:
        chat.send("Hi\r")
        chat.expect(CUT)
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


def test_a_pipe_gets_answers_only(tmp_path: Path, tiny_model: Path) -> None:
    done = run_piped(tmp_path, tiny_model, b"Hi\n\n  \nMore\n", *FIVE)
    assert done.returncode == 0
    assert b"tiny" not in done.stdout and b"> " not in done.stdout
    assert done.stderr.count(b"cut after 5 tokens") == 2
    model = edgedb.load(tiny_model, backend="numpy")
    first = model.chat([{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0).text
    assert done.stdout.decode().startswith(first.lstrip())
    assert not (tmp_path / "state").exists()


def test_a_pipe_that_is_not_utf8_or_empty(tmp_path: Path, tiny_model: Path) -> None:
    assert run_piped(tmp_path, tiny_model, b"caf\xe9\n", *FIVE).returncode == 0
    empty = run_piped(tmp_path, tiny_model, b"")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"", b"")


def test_a_full_context_in_a_pipe_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    done = run_piped(tmp_path, tiny_model, b"x " * 600 + b"\n", *FIVE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"edgedb: ") and done.stderr.count(b"\n") == 1


@pytest.fixture
def conversation(tiny_model: Path) -> Conversation:
    model = edgedb.load(tiny_model, backend="numpy", context=200)
    params = SamplingParams(temperature=1.5, seed=2)
    return Conversation(model, ChatOptions("Be brief.", max_tokens=8, params=params))


def test_turns_follow_each_other(conversation: Conversation) -> None:
    said = "".join(chunk.text for chunk in conversation.answer("Hi"))
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": said},
    ]
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_a_stopped_answer_stays_as_far_as_it_came(conversation: Conversation) -> None:
    said: list[str] = []
    for chunk in conversation.answer("Hi", cancelled=lambda: len("".join(said)) > 2):
        said.append(chunk.text)
    assert chunk.finish_reason == "cancelled"
    assert conversation.remark(chunk) == "stopped"
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(said)}


def test_without_an_answer_the_turn_is_taken_back(conversation: Conversation) -> None:
    for chunk in conversation.answer("Hi", cancelled=lambda: True):
        assert "dropped" in conversation.remark(chunk)
    assert len(conversation.messages) == 1
    with pytest.raises(ContextFullError):
        list(conversation.answer("x " * 300))
    assert len(conversation.messages) == 1


def test_a_context_that_fills_up_is_told(conversation: Conversation) -> None:
    conversation.options = ChatOptions(params=SamplingParams(temperature=1.5, seed=2))
    *_, last = conversation.answer("Hi")
    if last.finish_reason == "length":
        assert "context of 200 tokens is full" in conversation.remark(last)
