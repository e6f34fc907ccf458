"""The chat without a terminal: lines of a pipe, one question, readers that go away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from chats import CUT, FIVE, environment, run_piped
from terminal import Terminal

import edgedb


def test_a_pipe_gets_answers_only(tmp_path: Path, tiny_model: Path) -> None:
    done = run_piped(tmp_path, tiny_model, b"Hi\n\n  \nMore\n", *FIVE)
    assert done.returncode == 0
    assert b"tiny" not in done.stdout and b"> " not in done.stdout
    assert done.stderr.count(b"cut after 5 tokens") == 2
    model = edgedb.load(tiny_model, backend="numpy")
    first = model.chat([{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0).text
    assert done.stdout.decode().startswith(first.lstrip())
    assert not (tmp_path / "state").exists()


def test_a_slash_in_a_pipe_is_a_message(tmp_path: Path, tiny_model: Path) -> None:
    done = run_piped(tmp_path, tiny_model, b"/exit\n/help\n", *FIVE)
    assert done.stderr.count(b"cut after 5 tokens") == 2


def test_a_pipe_that_is_not_utf8_or_empty(tmp_path: Path, tiny_model: Path) -> None:
    assert run_piped(tmp_path, tiny_model, b"caf\xe9\n", *FIVE).returncode == 0
    empty = run_piped(tmp_path, tiny_model, b"")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"", b"")


def test_a_full_context_in_a_pipe_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    done = run_piped(tmp_path, tiny_model, b"x " * 600 + b"\n", *FIVE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"edgedb: ") and done.stderr.count(b"\n") == 1


def test_one_question(tmp_path: Path, tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, backend="numpy")

    def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        options = {"max_tokens": 5, "temperature": 0, "repetition_penalty": 1.1}
        return model.chat(messages, **options).text.strip()

    (tmp_path / "text.txt").write_text("a text")
    file = ["--file", str(tmp_path / "text.txt")]
    for options, question in (
        (["--prompt", "Hi"], "Hi"),
        (file, "a text"),
        (["--prompt", "Hi", *file], "Hi\n\na text"),
        (["--file", "-"], "from the pipe\n"),
    ):
        done = run_piped(tmp_path, tiny_model, b"from the pipe\n", *FIVE, *options)
        assert (done.returncode, done.stdout.decode().strip()) == (0, answer(question)), options
        assert done.stderr.count(b"\n") == 1, "the remark that it was cut"
    done = run_piped(tmp_path, tiny_model, b"", *FIVE, "-p", "Hi", "--stats")
    assert b"answer 5 tokens at" in done.stderr


def test_one_question_stopped_by_ctrl_c(tmp_path: Path, tiny_model: Path) -> None:
    from chats import _SLOW

    options = ["chat", str(tiny_model), "--prompt", "Hi", "-n", "400"]
    with Terminal([sys.executable, "-c", _SLOW, *options], environment(tmp_path)) as chat:
        chat.expect(r"\w\w")
        chat.send("\x03")
        assert chat.finish() == 130
        assert "Traceback" not in chat.text and "^C" not in chat.text


def test_a_reader_that_goes_away(tmp_path: Path, tiny_model: Path) -> None:
    chat = f"{sys.executable} -m edgedb chat {tiny_model} -n 100 --seed 1"
    for command in (
        f"yes Hi | head -20 | {chat} | head -1",
        f"{chat} --prompt Hi | head -c 1",
        f"echo Hi | {chat} --plain | head -c 1",
    ):
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, env=environment(tmp_path), timeout=60
        )
        assert b"Traceback" not in done.stderr and b"Broken pipe" not in done.stderr, command


def test_a_terminal_whose_answers_go_into_a_pipe(tmp_path: Path, tiny_model: Path) -> None:
    """``edgedb chat | head -1``: prompts and remarks on the terminal, the answers in the pipe."""
    options = " ".join(FIVE)
    command = f"{sys.executable} -m edgedb chat {tiny_model} {options} | cat > {tmp_path}/out"
    with Terminal(["sh", "-c", command], environment(tmp_path)) as chat:
        chat.expect("/help for commands")
        chat.expect("> ")
        chat.send("Hi\n")
        chat.expect(CUT)
        chat.send("/exit\n")
        assert chat.finish() == 0
    assert 0 < len((tmp_path / "out").read_text()) < 80
