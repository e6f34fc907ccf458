"""What the commands of the conversation do: one small function each.

Each takes what follows the command's name; ``EdgeDBError`` is its way to refuse.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import arguments
from ..errors import EdgeDBError
from ..files import size_text
from ..hub.modelfiles import find_model, known_models
from . import reports, storage
from .lineedit import unquote

if TYPE_CHECKING:
    from ..run.completion import Chunk
    from ..run.engine import Model
    from .conversation import Conversation, Prompt
    from .screen import Screen
    from .tuning import Settings

SHOWN = ("model", "system", "template", "settings", "messages")


class Chat(Protocol):
    """What an action may ask of the loop that runs it."""

    conversation: Conversation
    screen: Screen
    settings: Settings
    running: bool  # False ends the loop
    open_model: Callable[[Path], Model]

    def answer(self, make: Callable[[], Prompt]) -> Chunk | None:
        """Answer the prompt that ``make`` returns, and show the answer."""

    def read(self, default: str) -> str:
        """A message that begins as ``default``; it stays as it is after Ctrl-C."""

    def may_write(self, path: Path) -> bool:
        """Whether a file is new, was written here before, or may be replaced."""

    def load(self, path: Path) -> None:
        """Go on from a saved conversation. Raises ``EdgeDBError`` if it is none."""

    def changed(self) -> None:
        """The conversation is another one now."""


def exit_(chat: Chat, argument: str) -> None:
    chat.running = False


def clear(chat: Chat, argument: str) -> None:
    chat.conversation.clear()
    chat.changed()
    kept = " with the same system message" if chat.conversation.options.system else ""
    chat.screen.note(f"the conversation begins anew{kept}")


def undo(chat: Chat, argument: str) -> None:
    text = chat.conversation.undo()
    if text is None:
        raise EdgeDBError("there is nothing to take back")
    chat.changed()
    chat.screen.note(f"took back: {reports.preview(text)}")


def regen(chat: Chat, argument: str) -> None:
    if chat.conversation.last_question is None:
        raise EdgeDBError("there is no message to answer again")
    params = chat.conversation.options.params
    if params.temperature == 0:
        chat.screen.note("(temperature is 0: the answer will be the same)")
    chat.answer(chat.conversation.ask_again)


def continue_(chat: Chat, argument: str) -> None:
    if not chat.conversation.messages or chat.conversation.messages[-1]["role"] != "assistant":
        raise EdgeDBError("there is no answer to continue")
    chat.answer(chat.conversation.go_on)


def edit(chat: Chat, argument: str) -> None:
    before = chat.conversation.last_question
    if before is None:
        raise EdgeDBError("there is no message to edit")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if argument not in ("", "line"):
        raise EdgeDBError("/edit takes nothing, or `line` to edit without the editor")
    elsewhere = bool(editor) and not argument
    text = _in_editor(str(editor), before) if elsewhere else chat.read(before)
    if text.strip() and text != before:
        if elsewhere:
            chat.screen.quote(text, "> ", "  ")
        chat.answer(lambda: chat.conversation.ask_again(text))
    else:
        chat.screen.note("nothing changed; /regen answers the same message again")


def _in_editor(editor: str, text: str) -> str:
    with tempfile.TemporaryDirectory(prefix="edgedb-") as folder:  # readable by the owner alone
        path = Path(folder) / "message.txt"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(path)])
        except (OSError, ValueError) as error:
            raise EdgeDBError(f"cannot run the editor {editor}: {error}; try /edit line") from None
        if done.returncode:
            raise EdgeDBError(f"the editor {editor} failed; nothing changed")
        try:
            return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError:
            raise EdgeDBError(f"the editor {editor} left no message; nothing changed") from None


def system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    before = conversation.options.system
    if not argument:
        chat.screen.quote(before or "no system message; the model's template may have its own")
        return
    conversation.set_system(None if argument == "off" else unquote(argument))
    chat.changed()
    chat.screen.note("no system message" if argument == "off" else "system message set")


def set_(chat: Chat, argument: str) -> None:
    settings = chat.settings
    found = re.match(r"([\w-]*)\s*=?\s*(.*)", argument)
    name, value = found.groups() if found else (argument, "")
    name = name.replace("-", "_")
    if name == "default":
        changes = settings.reset()
        chat.screen.note("; ".join(changes) or "everything is as it was at the start")
    elif not name:
        chat.screen.table(settings.rows())
        chat.screen.note("/set NAME VALUE changes one, /set NAME explains it; * is changed")
    elif not value:
        chat.screen.note(settings.explain(name))
    else:
        chat.screen.note(settings.change(name, value))


def complete_set(chat: Chat, argument: str) -> list[str]:
    name, space, _ = argument.partition(" ")
    if not space:
        return [*(f"{name} " for name in chat.settings.names), "default"]
    return [f"{name} {value}" for value in chat.settings.values(name)]


def show(chat: Chat, argument: str) -> None:
    conversation, screen = chat.conversation, chat.screen
    what = argument or "model"
    if what == "model":
        screen.table(reports.model(conversation))
        screen.note(f"/show also takes {', '.join(SHOWN[1:])}")
    elif what == "system":
        system(chat, "")
    elif what == "template":
        screen.text(conversation.model.tokenizer_spec.chat_template or "no chat template")
    elif what == "settings":
        set_(chat, "")
    elif what == "messages":
        for message in conversation.messages:
            screen.note(f"{message['role']}:")
            screen.text(message["content"].strip())
        if not conversation.messages:
            screen.note("nothing was said yet")
    else:
        raise EdgeDBError(f"/show takes {', '.join(SHOWN)}")


def stats(chat: Chat, argument: str) -> None:
    chat.screen.table(reports.stats(chat.conversation))


def context(chat: Chat, argument: str) -> None:
    chat.screen.table(reports.context(chat.conversation))


def save(chat: Chat, argument: str) -> None:
    path = _path(argument, "/save FILE")
    if chat.may_write(path):
        storage.save(chat.conversation, path)
        cache = storage.save_cache(chat.conversation, path)
        beside = f" and what the model made of them to {cache}" if cache else ""
        chat.screen.note(f"saved {_count(chat)} to {path}{beside}")
        chat.screen.note(f"/load {argument} goes on from there")


def load(chat: Chat, argument: str) -> None:
    path = _path(argument, "/load FILE")
    chat.load(path)
    chat.changed()
    chat.screen.note(f"loaded {_count(chat)} from {path}")
    last = chat.conversation.messages[-1:]
    if last:
        chat.screen.note(f"  {last[0]['role']}: {reports.preview(last[0]['content'])}")


def export(chat: Chat, argument: str) -> None:
    path = _path(argument, "/export FILE.md or FILE.json")
    storage.check_export(path)
    if chat.may_write(path):
        storage.export(chat.conversation, path)
        chat.screen.note(f"wrote {_count(chat)} to {path}")


def model(chat: Chat, argument: str) -> None:
    current = chat.conversation.model.file.path
    if not argument:
        chat.screen.note(f"this is {current}; /model FILE goes on with another")
        for path in known_models(current):
            mark = "*" if path.resolve() == current.resolve() else " "
            chat.screen.note(f"  {mark} {path} ({size_text(path.stat().st_size)})")
        return
    chat.conversation.use(chat.open_model(find_model(argument, current)))
    for line in reports.banner(chat.conversation):
        chat.screen.note(line)


def complete_model(chat: Chat, argument: str) -> list[str]:
    known = [str(path) for path in known_models(chat.conversation.model.file.path)]
    return [*known, *(path for path in complete_path(chat, argument) if path not in known)]


def complete_path(chat: Chat, argument: str) -> list[str]:
    folder, slash, start = argument.rpartition("/")
    try:
        entries = sorted(_expanded(folder + slash or ".").iterdir())
    except OSError:
        return []
    return [
        f"{folder}{slash}{entry.name}{'/' if os.path.isdir(entry) else ''}"
        for entry in entries
        if entry.name.startswith(start) and (start.startswith(".") or entry.name[0] != ".")
    ]


def _path(argument: str, usage: str) -> Path:
    if not argument:
        raise EdgeDBError(f"name a file: {usage}")
    return arguments.path("FILE", _expanded(argument))


def _expanded(name: str) -> Path:
    # Path's own raises an error where there is no such user.
    return Path(os.path.expanduser(name))


def _count(chat: Chat) -> str:
    n = len(chat.conversation.messages) + len(chat.conversation.forgotten)
    return f"{n} message{'s' if n != 1 else ''}"
