"""``docs/chat.md`` lists the commands and keys that there are."""

from __future__ import annotations

import os
import re

from places import ROOT

from edgedb.chat.commands import COMMANDS
from edgedb.chat.lineedit import KEYS

PAGE = ROOT / "docs" / "chat.md"


def table(head: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| `{name}` | {text} |" for name, text in rows]
    return "\n".join([f"| {head} | |", "|---|---|", *lines, ""])


def test_commands_and_keys_on_the_page() -> None:
    """``EDGEDB_WRITE_DOCS=1`` writes them anew."""
    text = PAGE.read_text(encoding="utf-8")
    commands = [
        (f"/{c.name} {c.usage}".rstrip(), c.help + "".join(f"; also `/{a}`" for a in c.aliases))
        for c in COMMANDS
    ]
    current = text
    for head, rows in (("command", commands), ("key", KEYS)):
        pattern = re.compile(rf"\| {head} \| \|\n(\|.*\n)*")
        current = pattern.sub(lambda _, h=head, r=rows: table(h, r), current)
    if os.environ.get("EDGEDB_WRITE_DOCS"):
        PAGE.write_text(current, encoding="utf-8")
    else:
        assert current == text
