"""What the commands of the conversation do: one small function each.

Each takes what follows the command's name; ``EdgeDBError`` is its way to refuse.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments
from ..errors import EdgeDBError
from ..hub.modelfiles import find_model, known_models
from . import reports, storage
from .lineedit import unquote

if TYPE_CHECKING:
    from .repl import Repl

SHOWN = ("model", "system", "template", "settings", "messages")


def exit_(repl: Repl, argument: str) -> None:
    repl.running = False


def clear(repl: Repl, argument: str) -> None:
    repl.conversation.clear()
    repl.changed()
    kept = " with the same system message" if repl.conversation.options.system else ""
    repl.screen.note(f"the conversation begins anew{kept}")


def undo(repl: Repl, argument: str) -> None:
    text = repl.conversation.undo()
    if text is None:
        raise EdgeDBError("there is nothing to take back")
    repl.changed()
    repl.screen.note(f"took back: {reports.preview(text)}")


def regen(repl: Repl, argument: str) -> None:
    if repl.conversation.last_question is None:
        raise EdgeDBError("there is no message to answer again")
    params = repl.conversation.options.params
    if params.temperature == 0:
        repl.screen.note("(temperature is 0: the answer will be the same)")
    repl.answer(repl.conversation.ask_again)


def continue_(repl: Repl, argument: str) -> None:
    if not repl.conversation.messages or repl.conversation.messages[-1]["role"] != "assistant":
        raise EdgeDBError("there is no answer to continue")
    repl.answer(repl.conversation.go_on)


def edit(repl: Repl, argument: str) -> None:
    before = repl.conversation.last_question
    if before is None:
        raise EdgeDBError("there is no message to edit")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if argument not in ("", "line"):
        raise EdgeDBError("/edit takes nothing, or `line` to edit without the editor")
    elsewhere = bool(editor) and not argument
    text = _in_editor(str(editor), before) if elsewhere else repl.read(before)
    if text.strip() and text != before:
        if elsewhere:
            repl.screen.quote(text, "> ", "  ")
        repl.answer(lambda: repl.conversation.ask_again(text))
    else:
        repl.screen.note("nothing changed; /regen answers the same message again")


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


def system(repl: Repl, argument: str) -> None:
    conversation = repl.conversation
    before = conversation.options.system
    if not argument:
        repl.screen.quote(before or "no system message; the model's template may have its own")
        return
    conversation.set_system(None if argument == "off" else unquote(argument))
    repl.changed()
    repl.screen.note("no system message" if argument == "off" else "system message set")


def set_(repl: Repl, argument: str) -> None:
    settings = repl.settings
    found = re.match(r"([\w-]*)\s*=?\s*(.*)", argument)
    name, value = found.groups() if found else (argument, "")
    name = name.replace("-", "_")
    if not name:
        repl.screen.table(settings.rows())
        repl.screen.note("/set NAME VALUE changes one, /set NAME explains it; * is changed")
    elif not value:
        repl.screen.note(settings.explain(name))
    else:
        repl.screen.note(settings.change(name, value))


def complete_set(repl: Repl, argument: str) -> list[str]:
    name, space, _ = argument.partition(" ")
    if not space:
        return [f"{name} " for name in repl.settings.names]
    return [f"{name} {value}" for value in repl.settings.values(name)]


def show(repl: Repl, argument: str) -> None:
    conversation, screen = repl.conversation, repl.screen
    what = argument or "model"
    if what == "model":
        screen.table(reports.model(conversation))
        screen.note(f"/show also takes {', '.join(SHOWN[1:])}")
    elif what == "system":
        system(repl, "")
    elif what == "template":
        screen.text(conversation.model.tokenizer_spec.chat_template or "no chat template")
    elif what == "settings":
        set_(repl, "")
    elif what == "messages":
        for message in conversation.messages:
            screen.note(f"{message['role']}:")
            screen.text(message["content"].strip())
        if not conversation.messages:
            screen.note("nothing was said yet")
    else:
        raise EdgeDBError(f"/show takes {', '.join(SHOWN)}")


def stats(repl: Repl, argument: str) -> None:
    repl.screen.table(reports.stats(repl.conversation))


def context(repl: Repl, argument: str) -> None:
    repl.screen.table(reports.context(repl.conversation))


def save(repl: Repl, argument: str) -> None:
    path = _path(argument, "/save FILE")
    if repl.may_write(path):
        storage.save(repl.conversation, path)
        storage.save_cache(repl.conversation, path)
        repl.screen.note(f"saved {_count(repl)} to {path}; /load {argument} goes on from there")


def load(repl: Repl, argument: str) -> None:
    path = _path(argument, "/load FILE")
    repl.load(path)
    repl.changed()
    repl.screen.note(f"loaded {_count(repl)} from {path}")
    last = repl.conversation.messages[-1:]
    if last:
        repl.screen.note(f"  {last[0]['role']}: {reports.preview(last[0]['content'])}")


def export(repl: Repl, argument: str) -> None:
    path = _path(argument, "/export FILE.md or FILE.json")
    storage.check_export(path)
    if repl.may_write(path):
        storage.export(repl.conversation, path)
        repl.screen.note(f"wrote {_count(repl)} to {path}")


def model(repl: Repl, argument: str) -> None:
    current = repl.conversation.model.file.path
    if not argument:
        repl.screen.note(f"this is {current}; /model FILE goes on with another")
        for path in known_models(current):
            mark = "*" if path.resolve() == current.resolve() else " "
            repl.screen.note(f"  {mark} {path} ({reports.size(path.stat().st_size)})")
        return
    path = find_model(argument)
    beside = current.with_name(path.name if path.suffix else f"{path.name}.dbb")
    if not os.path.exists(path) and len(path.parts) == 1 and os.path.exists(beside):
        path = beside
    repl.conversation.use(repl.open_model(path))
    repl.screen.note(reports.banner(repl.conversation))


def complete_model(repl: Repl, argument: str) -> list[str]:
    known = [str(path) for path in known_models(repl.conversation.model.file.path)]
    return [*known, *(path for path in complete_path(repl, argument) if path not in known)]


def complete_path(repl: Repl, argument: str) -> list[str]:
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


def _count(repl: Repl) -> str:
    n = len(repl.conversation.messages) + len(repl.conversation.forgotten)
    return f"{n} message{'s' if n != 1 else ''}"
