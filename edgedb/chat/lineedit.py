"""Reading what the user types: with line editing on a terminal, plain lines otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..display import one_line, printable
from ..errors import EdgeDBError
from ..files import user_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

QUOTES = '"""'
KEYS = [
    ("Enter", "send the message"),
    (
        "Alt-Enter",
        'a new line inside the message; lines between """ and pasted lines stay together',
    ),
    ("Tab", "complete a command or its argument"),
    ("Up, Down", "earlier messages; Ctrl-R searches them"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Ctrl-C", "stop the answer, keep the conversation; at the prompt, empty the line"),
    ("Ctrl-D", "leave"),
]
PROMPT = "> "
# Whole documents that were pasted are there until the chat ends; the file is read at every start.
_LONGEST_KEPT = 10_000  # characters

Completions = Callable[[str], Iterable[str]]  # a line that begins with a slash -> whole lines


class Reader(Protocol):
    """Where messages come from: ``read`` raises ``EOFError`` and ``KeyboardInterrupt``."""

    def read(self, *, default: str = "") -> str:
        """The next message; ``default`` is there to be edited."""

    def confirm(self, question: str) -> bool:
        """Whether the user agrees."""


def unquote(text: str) -> str:
    """A message without the ``\"\"\"`` around it."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        stripped = stripped[len(QUOTES) :].removesuffix(QUOTES)
        return stripped.strip("\n")
    return text


def is_open(text: str) -> bool:
    """Whether a message begins with ``\"\"\"`` and waits for the closing ones."""
    stripped = text.strip()
    rest = stripped[len(QUOTES) :]
    return stripped.startswith(QUOTES) and not rest.endswith(QUOTES)


class PlainReader:
    """Lines of a stream; on a terminal with a prompt on standard error."""

    def __init__(self) -> None:
        self._prompting = sys.stdin.isatty() and sys.stderr.isatty()

    def read(self, *, default: str = "") -> str:
        """The next line, or the lines between ``\"\"\"``."""
        if default:
            raise EdgeDBError(
                "editing in place needs line editing; set EDITOR to edit in a program"
            )
        text = self._line(PROMPT)
        while is_open(text):
            try:
                text += "\n" + self._line("  ")
            except EOFError:
                break
        return unquote(text)

    def confirm(self, question: str) -> bool:
        """Ask on standard error."""
        return self._line(f"{one_line(question)} [y/N] ").strip().lower() in ("y", "yes")

    def _line(self, prompt: str) -> str:
        if self._prompting:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class LineEditor:
    """prompt-toolkit: editing over several lines, history, completion, bracketed paste."""

    def __init__(self, complete: Completions, *, history: bool, color: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.output.color_depth import ColorDepth

        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            multiline=True,
            key_bindings=_key_bindings(complete),
            completer=_completer(complete),
            complete_while_typing=Condition(lambda: _is_command(self._session.default_buffer.text)),
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".txt",
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
            reserve_space_for_menu=4,
        )

    def read(self, *, default: str = "") -> str:
        """One message."""
        start = printable(default)  # may come from a saved conversation
        text = self._session.prompt(PROMPT, default=start, prompt_continuation=" " * len(PROMPT))
        # In a locale without UTF-8 its bytes come one by one, as surrogates.
        return unquote(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))

    def confirm(self, question: str) -> bool:
        """Ask on a line of its own, which the history does not keep."""
        from prompt_toolkit import prompt

        return prompt(f"{one_line(question)} [y/N] ").strip().lower() in ("y", "yes")


def _is_command(text: str) -> bool:
    return text.startswith("/") and "\n" not in text


def _common(texts: list[str]) -> str:
    """The beginning that all texts have."""
    first, last = min(texts, default=""), max(texts, default="")
    return first[: next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))]


def _completer(complete: Completions) -> Any:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            line = document.text_before_cursor
            if _is_command(document.text):
                for whole in complete(line):
                    word = whole.rstrip().rpartition(" ")[2]
                    yield Completion(whole, start_position=-len(line), display=word)

    return Commands()


def _key_bindings(complete: Completions) -> KeyBindings:
    """Enter sends although the field has several lines; Ctrl-C empties it first."""
    from prompt_toolkit.filters import completion_is_selected
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("enter", filter=completion_is_selected)
    def accept(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("tab")
    def extend(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        line = buffer.document.text_before_cursor
        found = list(complete(line)) if _is_command(buffer.text) else []
        common = _common(found)
        if len(common) > len(line):
            buffer.insert_text(common[len(line) :])
        elif buffer.complete_state:
            buffer.complete_next()
        elif found:
            buffer.start_completion()

    @bindings.add("c-c")
    def empty(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def _history(kept: bool) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class MessageHistory(FileHistory):
        def store_string(self, string: str) -> None:
            if len(string) <= _LONGEST_KEPT:
                super().store_string(string)

    path = history_path() if kept else None
    return InMemoryHistory() if path is None else MessageHistory(str(path))


def history_path() -> Path | None:
    """File of the messages typed so far; None if ``EDGEDB_NO_HISTORY`` is set or it cannot be."""
    if os.environ.get("EDGEDB_NO_HISTORY"):
        return None
    state = user_folder("XDG_STATE_HOME", ".local", "state")
    if state is None:
        return None
    path = state / "edgedb" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Conversations are private: nobody else reads them, whatever the umask.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return None
    return path
