"""The conversation: its turns, the interactive loop with its commands, the plain loop for pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ui
from .engine import Message, Model
from .errors import ContextFullError, EdgeDBError
from .sampling import SamplingParams
from .session import Chunk

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings


@dataclass(frozen=True)
class ChatOptions:
    """What stays the same over the turns of a conversation."""

    system: str | None = None
    max_tokens: int | None = None  # of one answer
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()


class Conversation:
    """Turns of one chat over one session: a new turn reads only what the cache does not hold."""

    def __init__(self, model: Model, options: ChatOptions) -> None:
        self.model = model
        self.options = options
        self.messages: list[Message] = []
        self._session = model.session()
        self.clear()

    def clear(self) -> None:
        """Begin anew; the system message stays."""
        system = self.options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, text: str, cancelled: Callable[[], bool] | None = None) -> Iterator[Chunk]:
        """Add a user turn and stream the answer to it.

        A cancelled answer stays in the conversation as far as it came. Without any text, because
        of an error or an early cancel, the user turn is taken back.
        """
        self.messages.append({"role": "user", "content": text})
        said, blank = "", True
        try:
            chunks = self._session.chat(
                self.messages,
                stream=True,
                max_tokens=self.options.max_tokens,
                stop=self.options.stop,
                params=self.options.params,
                cancelled=cancelled,
            )
            for chunk in chunks:
                said += chunk.text
                # Some models begin with a space or a line of their own. It is not shown, but stays
                # in the conversation: the next turn reads only what differs from what was said.
                if not blank:
                    yield chunk
                    continue
                blank = not chunk.text.strip()
                yield replace(chunk, text=chunk.text.lstrip())
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def remark(self, last: Chunk | None) -> str:
        """What the reader should know about how an answer ended; empty if it simply ended."""
        if last is None or last.finish_reason == "stop":
            return ""
        stats = last.stats
        if last.finish_reason == "cancelled":
            return "stopped" if stats.completion_tokens else "stopped; your message was dropped"
        if stats.prompt_tokens + stats.completion_tokens >= self.model.context:
            return f"the answer ends here: the context of {self.model.context} tokens is full"
        return f"the answer was cut after {stats.completion_tokens} tokens (--max-tokens)"


def chat(model: Model, options: ChatOptions, *, plain: bool = False) -> None:
    """Hold a conversation: interactively on a terminal, otherwise line by line from a pipe."""
    conversation = Conversation(model, options)
    if plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _answer_lines(conversation)
    else:
        Repl(conversation).run()


def _answer_lines(conversation: Conversation) -> None:
    """Each line of standard input is a turn; only answers go to standard output."""
    for line in sys.stdin:
        if line.strip():
            remark = conversation.remark(ui.answer(conversation.answer(line.rstrip("\r\n"))))
            if remark:
                ui.warn(remark)


class Repl:
    """The interactive loop."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.running = True

    def run(self) -> None:
        """Prompt and answer until the user leaves."""
        prompt = _prompt_session()
        ui.banner(self.conversation.model)
        while self.running:
            try:
                self._take(prompt.prompt("> ", prompt_continuation="  "))
            except KeyboardInterrupt:
                ui.note("Ctrl-D or /exit leaves, /help lists the commands")
            except EOFError:
                break

    def _take(self, text: str) -> None:
        if text.startswith("/") and "\n" not in text:
            self._command(text)
        elif text.strip():
            self._turn(text)

    def _turn(self, text: str) -> None:
        try:
            with interruptible() as cancelled:
                last = ui.answer(self.conversation.answer(text, cancelled))
        except KeyboardInterrupt:
            ui.note("(stopped)")
        except ContextFullError as error:
            ui.note(f"({error}; /clear begins anew)")
        except EdgeDBError as error:
            ui.note(f"({error})")
        else:
            remark = self.conversation.remark(last)
            if "full" in remark:
                remark += "; /clear begins anew"
            if remark:
                ui.note(f"({remark})")

    def _command(self, text: str) -> None:
        name, _, argument = text[1:].strip().partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            ui.note(f"there is no command /{name}; /help lists them")
        else:
            command.run(self, argument.strip())

    def exit(self, argument: str) -> None:
        """leave (also Ctrl-D)"""
        self.running = False

    def clear(self, argument: str) -> None:
        """forget the conversation and begin anew"""
        self.conversation.clear()
        ui.note("the conversation begins anew")

    def help(self, argument: str) -> None:
        """list the commands and keys"""
        rows = [(f"/{name}", command.help) for name, command in COMMANDS.items()]
        rows += KEYS
        for name, text in rows:
            ui.note(f"  {name:<10} {text}")


@dataclass(frozen=True)
class Command:
    """A line that begins with a slash. Its function takes the rest of the line."""

    run: Callable[[Repl, str], None]

    @property
    def help(self) -> str:
        return self.run.__doc__ or ""


COMMANDS = {
    "help": Command(Repl.help),
    "clear": Command(Repl.clear),
    "exit": Command(Repl.exit),
}
KEYS = [
    ("Alt-Enter", "a new line inside the message; pasted lines stay together as well"),
    ("Ctrl-C", "stop the answer, keep the conversation"),
]


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish that can be asked for; the second one interrupts."""
    pressed = False

    def on_interrupt(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _prompt_session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    path = history_path()
    history: History = InMemoryHistory() if path is None else FileHistory(str(path))
    return PromptSession(history=history, multiline=True, key_bindings=_key_bindings())


def _key_bindings() -> KeyBindings:
    """Enter sends although the field has several lines; Ctrl-C empties it first."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def empty(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def history_path() -> Path | None:
    """File of the messages typed so far; None if ``EDGEDB_NO_HISTORY`` is set or it cannot be."""
    if os.environ.get("EDGEDB_NO_HISTORY"):
        return None
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "edgedb" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Conversations are private: nobody else reads them, whatever the umask.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return None
    return path
