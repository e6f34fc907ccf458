"""The loop of a conversation: read a message or a command, answer it, say what is worth knowing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ContextFullError, EdgeDBError
from ..run.engine import Model
from ..run.session import Chunk
from . import commands, reports, storage
from .conversation import Conversation, MessageTooLongError, Prompt
from .interrupt import interruptible, silent_keys
from .lineedit import LineEditor, PlainReader, Reader
from .screen import ColorChoice, Screen
from .tuning import Settings

# Shares of the context at which a conversation is told how full it is.
_WARN_AT = (0.8, 0.9, 0.95)
_FEW_TOKENS = 64  # an answer of less is hardly one


@dataclass(frozen=True)
class Manner:
    """How a conversation is held, whatever is said in it."""

    plain: bool = False  # no line editing, no wrapping
    color: ColorChoice = "auto"
    history: bool = True
    session: Path | None = None  # goes on from this file and is saved to it

    @property
    def rich(self) -> bool:
        """Whether answers appear on a terminal whose cursor may be moved."""
        return not self.plain and sys.stdout.isatty()

    @property
    def edited(self) -> bool:
        """Whether messages, if they are typed, are typed with line editing."""
        return self.rich and sys.stdin.isatty()


class Repl:
    """A conversation with somebody who types."""

    def __init__(
        self,
        conversation: Conversation,
        manner: Manner,
        open_model: Callable[[Path], Model],
        *,
        takes_commands: bool = True,
    ) -> None:
        self.conversation = conversation
        self.open_model = open_model
        self.settings = Settings(conversation)
        self.running = True
        self.written: set[str] = set()  # real paths of files to replace without a question
        self._manner = manner
        self._takes_commands = takes_commands
        self._warned = 0.0
        editing = takes_commands and manner.edited
        self.screen = Screen(
            rich=manner.rich,
            apart=not editing,
            color="never" if manner.plain and manner.color == "auto" else manner.color,
        )
        self._reader: Reader = PlainReader()
        if editing:
            self._reader = LineEditor(
                lambda line: commands.complete(self, line),
                history=manner.history,
                color=self.screen.color,
            )
        if manner.session is not None:
            self._resume(manner.session)

    def run(self) -> None:
        """Prompt and answer until the user leaves."""
        for line in reports.banner(self.conversation):
            self.screen.note(line)
        while self.running:
            try:
                self._take(self._reader.read())
            except KeyboardInterrupt:
                self.screen.note("Ctrl-D or /exit leaves, /help lists the commands")
            except EOFError:
                break
            except MessageTooLongError as error:
                self.screen.note(f"({error}{self._up()})")
            except ContextFullError as error:
                self.screen.note(f"({error}; {self._way_out()}{self._up()})")
            except EdgeDBError as error:
                self.screen.note(f"({error})")

    def answer(self, make: Callable[[], Prompt]) -> Chunk | None:
        """Answer the prompt that ``make`` returns. Raises ``ContextFullError`` if it cannot."""
        conversation, screen = self.conversation, self.screen
        screen.markdown = conversation.options.markdown
        with silent_keys(lines=isinstance(self._reader, PlainReader)), interruptible() as cancelled:
            try:
                prompt = make()
                self._announce(prompt)
                last = screen.answer(
                    lambda progress: conversation.answer(prompt, cancelled, progress)
                )
            except KeyboardInterrupt:  # pressed twice
                screen.note("(stopped)")
                return None
        self.changed()
        self._conclude(last)
        return last

    def read(self, default: str) -> str:
        """A message that begins as ``default``; it stays as it is after Ctrl-C."""
        try:
            return self._reader.read(default=default)
        except (KeyboardInterrupt, EOFError):
            return default

    def may_write(self, path: Path) -> bool:
        """Whether a file is new, was written here before, or may be replaced."""
        real = os.path.realpath(path)
        if os.path.exists(path) and real not in self.written:
            try:
                if not self._reader.confirm(f"{path} exists; replace it?"):
                    self.screen.note("nothing was written")
                    return False
            except (KeyboardInterrupt, EOFError):
                return False
        self.written.add(real)
        return True

    def load(self, path: Path) -> None:
        """Go on from a saved conversation. Raises ``EdgeDBError`` if it is none."""
        storage.load(self.conversation, path)
        self.written.add(os.path.realpath(path))
        try:
            storage.load_cache(self.conversation, path)
        except EdgeDBError as error:
            self.screen.note(f"({error}; the conversation is read again instead)")

    def close(self) -> None:
        """Keep what the next start would have to read again."""
        if self._manner.session is not None:
            storage.save_cache(self.conversation, self._manner.session)

    def changed(self) -> None:
        """The conversation is another one now: keep it, and measure the context anew."""
        self._warned = 0.0 if not self.conversation.messages else self._warned
        if self._manner.session is not None:
            storage.save(self.conversation, self._manner.session)

    def _take(self, text: str) -> None:
        if self._takes_commands and commands.is_command(text):
            commands.run(self, text)
        elif text.strip():
            self.answer(lambda: self.conversation.ask(text))

    def _announce(self, prompt: Prompt) -> None:
        """What happens to the context, before it happens."""
        conversation = self.conversation
        if prompt.dropped:
            turns = sum(message["role"] == "user" for message in prompt.dropped)
            self.screen.note(
                f"(the context is full: the oldest {turns} turn{'s' if turns != 1 else ''} "
                "dropped, the model no longer knows them)"
            )
        room = conversation.model.context - len(prompt.ids)
        if room < min(_FEW_TOKENS, conversation.options.max_tokens or _FEW_TOKENS):
            self.screen.note(f"(only {room} tokens are left for the answer; {self._way_out()})")

    def _conclude(self, last: Chunk | None) -> None:
        """What is worth knowing after an answer."""
        conversation, screen = self.conversation, self.screen
        remark = conversation.remark(last)
        if remark:
            if "is full" in remark:
                remark += f"; {self._way_out()}"
                self._warned = max(_WARN_AT)
            if "was dropped" in remark:
                remark += self._up()
            if self._takes_commands and "--max-tokens" in remark:
                remark = remark.replace("--max-tokens", "/set max_tokens") + "; /continue goes on"
            screen.note(f"({remark})")
        if conversation.options.stats and conversation.kept:
            screen.note(f"({reports.stats_line(conversation.turns[-1])})")
        self._warn_of_the_end()
        if isinstance(self._reader, LineEditor):
            screen.gap()

    def _warn_of_the_end(self) -> None:
        conversation = self.conversation
        used, context = conversation.used, conversation.model.context
        reached = max((share for share in _WARN_AT if used >= share * context), default=0.0)
        trim = conversation.options.trim == "oldest"
        # Once turns are being dropped, each time says so itself.
        if reached > self._warned and not (trim and conversation.forgotten):
            then = "then the oldest turns are dropped" if trim else self._way_out()
            self.screen.note(f"(context {reports.context_line(conversation)}; {then})")
        self._warned = reached

    def _up(self) -> str:
        return "; Up brings it back" if isinstance(self._reader, LineEditor) else ""

    def _way_out(self) -> str:
        if not self._takes_commands:
            return "--trim oldest drops old turns"
        if self.conversation.options.trim == "oldest":
            return "/clear begins anew"
        return "/clear begins anew, /undo takes back, /set trim oldest drops old turns"

    def _resume(self, path: Path) -> None:
        system = self.conversation.options.system
        if os.path.exists(path):
            self.load(path)
            if system is not None:
                self.conversation.set_system(system)
            n = len(self.conversation.messages)
            if self._takes_commands:
                self.screen.note(f"going on from {path}, {n} message{'s' if n != 1 else ''}")
        else:
            self.written.add(os.path.realpath(path))
            storage.save(self.conversation, path)  # better refused now than after the first answer
