"""The commands of the conversation: one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..display import one_line
from ..errors import EdgeDBError
from ..hints import suggestion
from . import actions
from .actions import Chat
from .lineedit import KEYS


@dataclass(frozen=True)
class Command:
    """A line that begins with a slash: ``run`` takes what follows its name."""

    name: str
    usage: str  # of the argument
    help: str
    run: Callable[[Chat, str], None]
    complete: Callable[[Chat, str], Iterable[str]] = lambda chat, argument: ()
    aliases: tuple[str, ...] = ()


def is_command(text: str) -> bool:
    """Whether a message is a command: one line, but a system message may have several."""
    return text.startswith("/") and ("\n" not in text or text.startswith("/system "))


def run(chat: Chat, line: str) -> None:
    """Do what a line says. Raises ``EdgeDBError`` for a command that does not exist."""
    name, _, argument = line[1:].partition(" ")
    command = _BY_NAME.get(name.strip())
    if command is None:
        near = suggestion(name, list(_BY_NAME), "/")
        more = "; /help lists them, a space in front makes the line a message"
        raise EdgeDBError(f"there is no command /{name}{near or more}")
    command.run(chat, argument.strip())


def complete(chat: Chat, line: str) -> list[str]:
    """Whole lines that ``line``, a beginning, may become."""
    name, space, argument = line[1:].partition(" ")
    if not space:
        return [
            f"/{c.name} " if c.usage else f"/{c.name}"
            for c in COMMANDS
            if c.name.startswith(name) or (name and any(a.startswith(name) for a in c.aliases))
        ]
    command = _BY_NAME.get(name)
    if command is None:
        return []
    found = command.complete(chat, argument.lstrip())
    # A file whose name would steer the terminal is not offered: the line editor shows it as it is.
    plain = (word for word in found if one_line(word, len(word)) == word)
    return [f"/{name} {word}" for word in plain if word.startswith(argument.lstrip())]


def help_(chat: Chat, argument: str) -> None:
    if argument:
        command = _BY_NAME.get(argument.removeprefix("/"))
        if command is None:
            raise EdgeDBError(f"there is no command {argument}; /help lists them")
        chat.screen.note(f"/{command.name} {command.usage}".rstrip())
        chat.screen.note(f"  {command.help}")
        return
    chat.screen.table((f"/{c.name} {c.usage}".rstrip(), c.help) for c in COMMANDS)
    chat.screen.note("")
    chat.screen.table(KEYS)


COMMANDS: list[Command] = [
    Command(
        "help",
        "[COMMAND]",
        "list the commands and keys",
        help_,
        lambda chat, argument: [command.name for command in COMMANDS],
        ("?",),
    ),
    Command("exit", "", "leave", actions.exit_, aliases=("quit", "bye")),
    Command("clear", "", "forget the conversation and begin anew", actions.clear, aliases=("new",)),
    Command("undo", "", "take the last message and its answer back", actions.undo),
    Command("regen", "", "answer the last message again", actions.regen, aliases=("retry",)),
    Command("continue", "", "go on with the last answer where it stopped", actions.continue_),
    Command(
        "edit",
        "[line]",
        "change the last message and answer it, in $EDITOR if there is one, or in line",
        actions.edit,
        lambda chat, argument: ["line"],
    ),
    Command(
        "system",
        "[TEXT]",
        "show the system message or replace it; off: have none",
        actions.system,
        lambda chat, argument: ["off"],
    ),
    Command(
        "set",
        "[NAME [VALUE]]",
        "list the settings, explain one or change it; default brings back one, or all",
        actions.set_,
        actions.complete_set,
    ),
    Command(
        "show",
        "[WHAT]",
        f"show {', '.join(actions.SHOWN[:-1])} or {actions.SHOWN[-1]}",
        actions.show,
        lambda chat, argument: actions.SHOWN,
    ),
    Command("stats", "", "speeds of the last answer, memory, what runs the model", actions.stats),
    Command("context", "", "how full the context is, and of what", actions.context),
    Command(
        "save", "FILE", "save the conversation, to go on later", actions.save, actions.complete_path
    ),
    Command("load", "FILE", "go on from a saved conversation", actions.load, actions.complete_path),
    Command(
        "export",
        "FILE",
        "write the conversation as .md or .json, to read",
        actions.export,
        actions.complete_path,
    ),
    Command(
        "model",
        "[FILE]",
        "list the models nearby, or go on with another one",
        actions.model,
        actions.complete_model,
    ),
]
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
