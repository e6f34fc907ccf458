"""Conversations as files: saved to go on later, or exported to be read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EdgeDBError, TemplateError
from ..files import read_regular, replacing
from ..text.messages import Message, joined_parts, plain_messages
from .conversation import Conversation

ROLES = ("system", "user", "assistant")
CACHE_SUFFIX = ".kv"
MOST_BYTES = 64 << 20  # of a conversation; months of talk are a few


def save(conversation: Conversation, path: Path) -> None:
    """Write the turns as JSON, whole or not at all; readable by nobody else."""
    document = {
        "model": conversation.model.file.path.name,
        "messages": conversation.messages,
        "forgotten": conversation.forgotten,
    }
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def load(conversation: Conversation, path: Path) -> None:
    """Go on from a saved conversation, or from any JSON with ``messages`` of role and content.

    Raises ``EdgeDBError`` if the file is not that; the conversation stays as it was then.
    """
    try:
        document = json.loads(read_regular(path, MOST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError):
        raise EdgeDBError(f"{path} is not a conversation: expected JSON with messages") from None
    forgotten: Any = []
    if isinstance(document, dict):
        forgotten, document = document.get("forgotten", []), document.get("messages")
    conversation.restore(_checked(document, path), _checked(forgotten, path))


def save_cache(conversation: Conversation, path: Path) -> Path | None:
    """Write what the model made of the turns beside ``path``, so that nobody waits for it again.

    Returns the file, or None where there was nothing to write.
    """
    if not conversation.session.position:
        return None
    cache = _cache_path(path)
    conversation.session.save(cache)
    return cache


def load_cache(conversation: Conversation, path: Path) -> None:
    """Take over what ``save_cache`` wrote, if it is there.

    Raises ``EdgeDBError`` if it is damaged or another model's. The turns are read again then, as
    are those that differ from it.
    """
    cache = _cache_path(path)
    if os.path.exists(cache):
        conversation.session = conversation.model.load_session(cache)


def _cache_path(path: Path) -> Path:
    return path.with_name(path.name + CACHE_SUFFIX)


def _checked(messages: Any, path: Path) -> list[Message]:
    if not isinstance(messages, list):
        raise EdgeDBError(f"{path} is not a conversation: expected JSON with messages")
    try:
        plain = plain_messages(messages) if messages else []
    except TemplateError as error:
        raise EdgeDBError(f"{path}: {error}") from None
    for number, message in enumerate(plain, 1):
        if message["role"] not in ROLES:
            raise EdgeDBError(f"{path}: message {number}: its role must be {' or '.join(ROLES)}")
    return [{"role": m["role"], "content": joined_parts(m.get("content", ""))} for m in plain]


def check_export(path: Path) -> None:
    """Raise ``EdgeDBError`` if the name does not say what to write."""
    if path.suffix not in (".json", ".md", ".markdown"):
        raise EdgeDBError(f"{path}: end the name in .md or .json to choose the form")


def export(conversation: Conversation, path: Path) -> None:
    """Write all turns, dropped ones too: Markdown if the name ends in .md, JSON if in .json."""
    check_export(path)
    head, rest = conversation.split()
    messages = [*head, *conversation.forgotten, *rest]
    name = conversation.model.file.path.stem
    if path.suffix == ".json":
        text = json.dumps({"model": name, "messages": messages}, indent=2, ensure_ascii=False)
        write_text(path, text + "\n")
    else:
        write_text(path, markdown(messages, name))


def markdown(messages: Sequence[Message], model: str) -> str:
    """The turns under headings."""
    parts = [f"# Chat with {model}"]
    for message in messages:
        parts += [f"## {message['role'].capitalize()}", message["content"].strip()]
    return "\n\n".join(parts) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a crash leaves the old one or the new one."""
    try:
        with replacing(Path(os.path.realpath(path))) as file:  # a link stays a link
            file.write(text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise EdgeDBError(f"{path}: {error.strerror}") from None
