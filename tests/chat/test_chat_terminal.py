"""The chat in a pseudo-terminal: keys, pastes, interrupts, windows and locales."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import CUT, FIVE, READY, begin, leave, say, start
from terminal import Terminal

from edgedb.chat.screen import Screen
from edgedb.run.session import Chunk, Stats

ENDLESS = ["--temperature", "1.5", "--seed", "1", "--max-tokens", "400"]


@pytest.fixture
def chat(tmp_path: Path, tiny_model: Path) -> Iterator[Terminal]:
    with start(tmp_path, tiny_model, *FIVE) as terminal:
        yield terminal


def test_messages_of_all_kinds(chat: Terminal) -> None:
    """One line, pasted lines, Alt-Enter, quotes; then Ctrl-D."""
    say(chat, "Hi there", CUT)
    chat.send("\x1b[200~first line\r\nsecond line\n\x1b[201~")
    chat.expect("second line")
    say(chat, "", CUT)
    say(chat, "one\x1b\rtwo", CUT)
    chat.send('"""first of three\r')
    chat.send("/exit is text here\r")
    say(chat, 'the end"""', CUT)
    say(chat, " /exit with a space", CUT)
    seen = say(chat, "/show messages", "exit with a space")
    assert len(re.findall(CUT, chat.text)) == 5
    for words in ("first line", "second line", "one", "two", "first of three", "/exit is text"):
        assert re.search(rf"(?m)^(\x1b\[\d*m)*{re.escape(words)}", seen), words
    assert '"""' not in seen
    chat.send("\x04")
    assert chat.finish() == 0


def test_ctrl_c_at_the_prompt_hints_and_stays(chat: Terminal) -> None:
    chat.send("\x03")
    chat.expect("Ctrl-D or /exit leaves")
    chat.expect(READY)
    chat.send("half a mess\x03")
    time.sleep(0.2)
    leave(chat)


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *ENDLESS, slow=True) as chat:
        chat.send("Tell me everything\r")
        begin(chat, "Tell me everything")
        pressed = time.monotonic()
        chat.send("\x03")
        chat.expect(r"\(stopped\)")
        assert time.monotonic() - pressed < 2  # 11 ms at most; 400 tokens take 4 s
        chat.expect(READY)
        assert "^C" not in chat.text
        assert "Tell me everything" in say(chat, "/show messages", "assistant:")
        leave(chat)


def test_ctrl_c_while_a_prompt_is_read(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, slow=True) as chat:
        chat.send("x " * 200 + "\r")
        chat.expect(r"\[#+\.+\] [\d]+ of [\d]+ tokens read")
        pressed = time.monotonic()
        chat.send("\x03")
        chat.expect("your message was dropped")
        assert time.monotonic() - pressed < 2
        chat.expect(READY)
        say(chat, "/show messages", "nothing was said yet")
        leave(chat)


def test_typing_ahead_waits_for_the_prompt(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, slow=True) as chat:
        chat.send("Hi\r")
        chat.expect(r"\x1b\[\?2004l")
        chat.expect(READY)  # the answer's, which shows no keys
        chat.send("\x1b[200~pasted\nlines\n\x1b[201~")
        chat.expect(CUT)
        assert "pasted" not in chat.text[: chat.position]  # what follows may have come with it
        chat.expect("pasted")
        say(chat, "", CUT)
        say(chat, "/context", "pasted lines")
        leave(chat)


def test_a_resized_window(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *ENDLESS, "--color", "never", slow=True) as chat:
        chat.send("a long question that goes on")
        chat.resize(10, 20)
        chat.send(" and on\r")
        begin(chat, r"and\s*on")
        chat.resize(20, 40)
        time.sleep(0.5)
        chat.send("\x03")
        chat.expect(r"\(stopped\)")
        chat.expect(READY)
        leave(chat)


def test_keys_stay_silent_after_a_suspension(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *ENDLESS, slow=True) as chat:
        chat.send("Tell me everything\r")
        begin(chat, "everything")
        assert not chat.echoes
        chat.echoes = True  # as a shell does when Ctrl-Z gives it the terminal
        chat.resume()
        time.sleep(0.2)
        assert not chat.echoes
        chat.send("\x03")
        chat.expect(r"\(stopped\)")
        chat.expect(READY)
        leave(chat)


def test_markdown_entities_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(rich=True, apart=False, color="always")
    screen.markdown = True
    answer = Chunk("*a*&#x202e;b&#27;[2Jc &#x2066;d", None, "stop", Stats())
    screen.answer(lambda _: iter([answer]))
    shown = capsys.readouterr().out
    assert "\x1b[3ma\x1b[0mb" in shown and "\u202e" not in shown and "\x1b[2J" not in shown


def test_markdown_appears_once_complete(tmp_path: Path, tiny_model: Path) -> None:
    options = ["--temperature", "1.5", "--seed", "1", "--max-tokens", "60", "--markdown"]
    with start(tmp_path, tiny_model, *options, slow=True) as chat:
        chat.send("Tell me everything\r")
        seen = chat.expect(r"\d+ tokens written")
        assert "everything" in seen
        chat.expect("cut after 60 tokens")
        chat.expect(READY)
        say(chat, "/set markdown off", r"markdown off \(was on\)")
        leave(chat)


def test_a_narrow_window(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, "--color", "never", columns=30) as chat:
        say(chat, "Hi", CUT)
        for command in ("/help", "/set", "/stats", "/show", "/model"):
            chat.send(command + "\r")
            chat.expect(r"\?2004l")
            for line in chat.expect(READY).split("\r\n")[:-1]:
                shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line).strip("\r")
                assert len(shown) <= 30 or "/" in shown, "only a path may be wider"
        leave(chat)


def test_history_is_kept_private_and_can_be_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "state" / "edgedb" / "history"
    for options, env in (((), {"EDGEDB_NO_HISTORY": "1"}), (("--no-history",), {}), ((), {})):
        with start(tmp_path, tiny_model, *FIVE, *options, **env) as chat:
            say(chat, "Remember me", CUT)
            leave(chat)
        assert path.exists() == (not options and not env)
    assert "Remember me" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with start(tmp_path, tiny_model, *FIVE) as chat:
        chat.send("\x1b[A\x1b[A")
        chat.expect("Remember me")


def test_a_locale_without_unicode(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, LC_ALL="C", PYTHONUTF8="0") as chat:
        say(chat, "Un café, s'il vous plaît", CUT)
        say(chat, "/help", "Ctrl-D")
        say(chat, f"/export {tmp_path}/chat.json", "wrote 2 messages")
        leave(chat)
    assert "Un café, s'il vous plaît" in (tmp_path / "chat.json").read_text(encoding="utf-8")


def test_colors(tmp_path: Path, tiny_model: Path) -> None:
    for options, env, dimmed in (
        ([], {}, True),
        (["--color", "never"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ):
        with start(tmp_path, tiny_model, *FIVE, *options, **env) as chat:
            assert ("\x1b[2m" in chat.text) == dimmed, (options, env)
            leave(chat)
    assert not re.search(r"\x1b\[[\d;]*3\dm", chat.text)


def test_plain_reads_lines_and_takes_commands(tmp_path: Path, tiny_model: Path) -> None:
    with start(tmp_path, tiny_model, *FIVE, "--plain", ready="> ") as chat:
        chat.send("Hi\n")
        chat.expect(CUT)
        chat.send('"""two\nlines"""\n')
        chat.expect(CUT)
        chat.send("/undo\n")
        chat.expect("took back: two lines")
        chat.send("\x03")
        chat.expect("Ctrl-D or /exit leaves")
        chat.send("/edit line\n")
        chat.expect("EDITOR")
        chat.send("\x04")
        assert chat.finish() == 0
    assert "\x1b" not in chat.text
