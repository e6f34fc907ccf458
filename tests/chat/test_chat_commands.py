"""Every command of the chat, in a pseudo-terminal."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from chats import CUT, FIVE, leave, run_piped, say, start
from terminal import Terminal

from edgedb import EdgeDBError
from edgedb.chat import actions
from edgedb.chat.commands import COMMANDS
from edgedb.chat.lineedit import KEYS
from edgedb.choose.settings import sampling_settings

WIDE = 300  # no line is wrapped, so that texts can be found


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Terminal:
    """One chat for all tests that leave it as they found it: a turn about Hi."""
    folder = tmp_path_factory.mktemp("chat")
    editor = "sed -i s/Hi/Ho/"
    with start(folder, tiny_model, *FIVE, columns=WIDE, EDITOR=editor) as terminal:
        say(terminal, "Hi", CUT)
        yield terminal
        leave(terminal)


def test_help_lists_every_command_and_key(chat: Terminal) -> None:
    seen = say(chat, "/help", "Ctrl-D")
    for command in COMMANDS:
        assert f"  /{command.name} " in seen
    for key, _ in KEYS:
        assert key in seen
    assert "take the last message" in say(chat, "/help undo", "answer back")
    say(chat, "/help nothing", "there is no command nothing")


def test_unknown_commands_are_not_messages(chat: Terminal) -> None:
    say(chat, "/hepl", "did you mean /help")
    say(chat, "/frobnicate now", "/help lists them, a space in front")


def test_set_lists_explains_changes_and_refuses(chat: Terminal) -> None:
    seen = say(chat, "/set", "/set NAME VALUE")
    for name in (*sampling_settings(), "max_tokens", "stop", "trim", "stats"):
        assert name in seen
    say(chat, "/set top_k", "Only so many tokens.*Expected: a whole number")
    say(chat, "/set top-k 7", r"top_k 7 \(was 40\)")
    say(chat, "/set top_p=0.5", r"top_p 0.5 \(was 0.95\)")
    assert re.search(r"top_k +7 +\*", say(chat, "/set", "/set NAME VALUE"))
    say(chat, "/set top_k default", r"top_k 40 \(was 7\)")
    say(chat, "/set top_p default", r"top_p 0.95")
    say(chat, '/set stop "###" "a b"', r'stop "###" "a b" \(was off\)')
    say(chat, r'/set stop \n\t "\\"', r'stop "\\n\\t" "\\\\" \(was "###" "a b"\)')
    say(chat, "/set stop off", r"stop off")
    say(chat, '/set chat-template-kwargs {"x": [1]}', r'kwargs {"x": \[1\]} \(was off\)')
    say(chat, "/set chat_template_kwargs x", "expected a JSON object like")
    say(chat, '/set chat_template_kwargs {"tools": 1}', "tools is an option of its own")
    say(chat, "/set chat_template_kwargs off", r"kwargs off")
    say(chat, "/set logit_bias 5=-inf, 7=2", r"logit_bias 5=-inf,7=2 \(was off\)")
    say(chat, "/set logit-bias=off", r"logit_bias off \(was 5=-inf,7=2\)")
    say(chat, "/set seed 5", r"seed 5 \(was random\)")
    say(chat, "/set seed random", r"seed random \(was 5\)")
    say(chat, "/set temprature 1", "did you mean temperature")
    say(chat, "/set temperature hot", "temperature = hot: expected a number")
    say(chat, "/set top_p 3", "top_p = 3.0: expected a number from 0 to 1")
    say(chat, "/set trim some", "expected off or oldest")
    say(chat, "/set max_tokens 0", "at least 1")
    say(chat, "/set prompt_lookup 8", r"prompt_lookup 8 \(was 0\)")
    say(chat, "/set prompt_lookup default", r"prompt_lookup 0 \(was 8\)")
    say(chat, "/set prompt_lookup -1", "whole number from 0 to 127")


def test_set_default_brings_everything_back(chat: Terminal) -> None:
    say(chat, "/set default", "everything is as it was at the start")
    say(chat, "/set top_k 7", r"top_k 7 \(was 40\)")
    say(chat, "/set stop END", r"stop \"END\" \(was off\)")
    say(chat, "/set default", r"top_k 40 \(was 7\); stop off \(was \"END\"\)")
    assert not re.search(r"\* ", say(chat, "/set", "/set NAME VALUE").rpartition("/set NAME")[0])


def test_show(chat: Terminal) -> None:
    assert "numpy" in say(chat, "/show", "/show also takes")
    say(chat, "/show system", "no system message")
    assert "im_start" in say(chat, "/show template", "add_generation_prompt")
    say(chat, "/show settings", "/set NAME VALUE")
    assert "Hi" in say(chat, "/show messages", "assistant:")
    say(chat, "/show me", "/show takes model")


def test_stats_and_context(chat: Terminal) -> None:
    seen = say(chat, "/stats", "runs on")
    for words in ("prompt", "first text", "answer", "tokens in", "context", "cache", "memory"):
        assert words in seen
    seen = say(chat, "/context", "when full")
    assert re.search(r"[\d]+ of 512 tokens \(\d+%\), \d+ left", seen)
    assert "Hi" in seen
    say(chat, "/set stats on", r"stats on \(was off\)")
    say(chat, "/regen", r"first text after.*answer 5 tokens at")
    say(chat, "/set stats off", "stats off")


def test_undo_regen_and_edit(chat: Terminal) -> None:
    say(chat, "Hi again", CUT)
    seen = say(chat, "/regen", CUT)
    assert "temperature is 0" in seen
    say(chat, "/edit", CUT)
    assert "Ho again" in say(chat, "/show messages", "Ho again.*\n.*assistant:")
    chat.send("/edit line\r")
    chat.expect("Ho again")
    say(chat, " and again", CUT)
    assert "Ho again and again" in say(chat, "/context", "when full")
    chat.send("/edit line\r")
    chat.expect("Ho again and again")
    say(chat, "\x03\x03", "nothing changed")
    say(chat, "/edit sometimes", "/edit takes nothing")
    say(chat, "/undo", "took back: Ho again and again")


def test_continue(chat: Terminal) -> None:
    say(chat, "Hi again", r"cut after 5 tokens \(/set max_tokens\); /continue goes on")
    before = say(chat, "/context", "when full").count("\n")
    say(chat, "/continue", CUT)
    assert say(chat, "/context", "when full").count("\n") == before
    say(chat, "/undo", "took back: Hi again")


def test_an_editor_that_leaves_nothing() -> None:
    with pytest.raises(EdgeDBError, match="the editor rm left no message"):
        actions._in_editor("rm", "Hi")


def test_system(chat: Terminal) -> None:
    say(chat, "/system Speak like a pirate.", "system message set")
    say(chat, "/system", "Speak like a pirate")
    assert "pirate" in say(chat, "/show messages", "assistant:")
    say(chat, "/system Two\x1b\rlines", "system message set")
    assert "lines" in say(chat, "/system", "Two")
    say(chat, "/system off", "no system message")


def test_save_load_and_export(chat: Terminal, tmp_path: Path) -> None:
    saved, page, document = (tmp_path / name for name in ("a.chat", "a.md", "a.json"))
    say(chat, f"/save {saved}", "saved 2 messages to")
    assert f"{saved}.kv" in say(chat, f"/save {saved}", "goes on from there")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    say(chat, f"/export {page}", "wrote 2 messages")
    say(chat, f"/export {document}", "wrote 2 messages")
    say(chat, f"/export {tmp_path}/a.txt", r"\.md or \.json")
    assert "## User\n\nHi\n\n## Assistant\n\n" in page.read_text()
    messages = json.loads(document.read_text())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    say(chat, "More", CUT)
    say(chat, f"/load {saved}", "loaded 2 messages")
    assert "More" not in say(chat, "/show messages", "assistant:")
    for name in ("a.md", "nothing"):
        say(chat, f"/load {tmp_path}/{name}", "is not a conversation|No such file")
    say(chat, "/save", "name a file: /save FILE")
    say(chat, f"/save {tmp_path}/no/where", "No such file")
    for command in ("save", "load", "export", "model"):
        say(chat, f"/{command} ~nobody-of-this-name/a.md", "[Nn]o such file")
        say(chat, f"/{command} {'a' * 260}.md", "File name too")
    other = tmp_path / "other.md"
    other.write_text("mine")
    chat.send(f"/export {other}\r")
    chat.expect(r"replace it\? \[y/N\]")
    say(chat, "n", "nothing was written")
    assert other.read_text() == "mine"
    chat.send(f"/export {other}\r")
    chat.expect(r"replace it\? \[y/N\]")
    say(chat, "y", "wrote 2 messages")
    assert "Chat with tiny" in other.read_text()


def test_model(chat: Terminal, tmp_path: Path, tiny_model: Path) -> None:
    other = tiny_model.with_name("twin.dbb")
    other.write_bytes(tiny_model.read_bytes())
    try:
        seen = say(chat, "/model", r"twin\.dbb")
        assert re.search(r"\* \S*tiny\.dbb", seen)
        say(chat, f"/model {tmp_path}/none.dbb", "none.dbb")
        say(chat, "/model twin", "twin: numpy")
        assert "Hi" in say(chat, "/show messages", "assistant:")
        say(chat, "/regen", CUT)
        say(chat, "/model tiny", "tiny: numpy")
    finally:
        other.unlink()


def test_completion(chat: Terminal) -> None:
    for typed, completed, answer in (
        ("/conte", "/context", "when full"),
        ("/set tri", "/set trim", "Expected: off or oldest"),
        ("/set trim ol", "/set trim oldest", r"trim oldest \(was off\)"),
    ):
        chat.send(typed + "\t")
        chat.expect(completed)
        say(chat, "", answer)
    say(chat, "/set trim off", r"trim off \(was oldest\)")


def test_clear(chat: Terminal) -> None:
    say(chat, "/clear", "begins anew")
    say(chat, "/show messages", "nothing was said yet")
    for line in ("/undo", "/regen", "/edit"):
        say(chat, line, "there is no(thing| message)")
    say(chat, "Hi", CUT)


def test_a_full_context_is_announced(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, "--context", "160", columns=WIDE) as chat:
        say(chat, "x " * 100, r"context has 160 tokens, this message alone makes")
        say(chat, "x " * 45, CUT)
        seen = say(chat, "Hi", CUT)
        assert re.search(r"\(context 1\d\d of 160 tokens \([89]\d%\), \d+ left; /clear", seen)
        assert "/set trim oldest" in say(chat, "x " * 20, "with this message it")
        say(chat, "/set trim oldest", "trim oldest")
        seen = say(chat, "x " * 20, CUT)
        assert re.search(r"the context is full: the oldest \d turns? dropped", seen)
        leave(chat)


def test_a_session_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "my.chat"
    with start(tmp_path, tiny_model, *FIVE, "--session", str(path), "--system", "Sys") as chat:
        say(chat, "Hi", CUT)
        leave(chat)
    options = (*FIVE, "--session", str(path))
    done = run_piped(tmp_path, tiny_model, b"More\n", *options)
    assert done.returncode == 0
    with start(tmp_path, tiny_model, *options, columns=WIDE) as chat:
        assert "5 messages" in chat.text
        seen = say(chat, "/show messages", "More.*\n.*assistant:")
        assert "Sys" in seen and "Hi" in seen
        seen = say(chat, "And now", CUT) + say(chat, "/stats", "runs on")
        assert not re.search(r" 0 were in the cache", seen), "read from the file, not again"
        leave(chat)
    cache = tmp_path / "my.chat.kv"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(cache.stat().st_mode) == 0o600
    cache.write_bytes(b"damaged")
    with start(tmp_path, tiny_model, *options, columns=WIDE) as chat:
        assert "read again" in chat.text
        say(chat, "And now", CUT)
        leave(chat)
    damaged = tmp_path / "damaged.chat"
    damaged.write_text("{")
    done = run_piped(tmp_path, tiny_model, b"Hi\n", "--session", str(damaged))
    assert done.returncode == 2 and b"is not a conversation" in done.stderr
    assert damaged.read_text() == "{"
