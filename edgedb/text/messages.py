"""What callers may hand to a chat template: messages, tools, documents, variables of its own.

They come from programs, files and other libraries. Everything is checked, and a template gets
copies made of plain JSON values: nothing that it could change, no object that it could call.
What is checked and how it is made plain follows Hugging Face transformers.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import TemplateError

Message = Mapping[str, Any]
Write = Callable[[list[dict[str, Any]]], str]  # messages as a template writes them

_MAX_DEPTH = 64
# Names under which libraries pass what a model thought; templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# What a template gets by these names has an argument of its own.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


def plain_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Copies of ``messages``, without the keys whose value is None.

    A message has a ``role`` and, unless it calls tools, a ``content``: a text, a list of text parts
    (``{"type": "text", "text": ...}``) or None. Other keys are the template's business. Raises
    ``TemplateError`` that names the message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TemplateError(
            f'messages: expected a list of {{"role": ..., "content": ...}}, not {_kind(messages)}'
        )
    found = [_plain_message(message, f"message {n}") for n, message in enumerate(messages, 1)]
    if not found:
        raise TemplateError("no messages; give at least one")
    return found


def _plain_message(message: Any, where: str) -> dict[str, Any]:
    plain = _plain(message, where)
    if not isinstance(plain, dict):
        raise TemplateError(f"{where}: expected a dictionary with role and content")
    if not isinstance(plain.get("role"), str) or not plain["role"]:
        raise TemplateError(f"{where}: role must be a text such as user")
    if "content" not in plain and not plain.get("tool_calls"):
        raise TemplateError(f"{where}: content is missing")
    _check_content(plain.get("content"), where)
    calls = plain.get("tool_calls")
    if calls is not None and not _is_list_of_objects(calls):
        raise TemplateError(f"{where}: tool_calls must be a list of objects")
    given = {key: value for key, value in plain.items() if value is not None}
    thought = next((given[name] for name in _REASONING if name in given), None)
    if thought is not None:
        given = {"thinking": thought, **given, "reasoning_content": thought}
    return given


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise TemplateError(
            f"{where}: content must be a text, a list of text parts or None, not {_kind(content)}"
        )
    for number, part in enumerate(content, 1):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text":
            said = f"of type {kind!r:.60}" if kind is not None else f"that is {_kind(part)}"
            raise TemplateError(f"{where}: part {number} {said}; this model reads text parts only")
        if not isinstance(part.get("text"), str):
            raise TemplateError(f"{where}: part {number} has no text")


def plain_objects(objects: Sequence[Mapping[str, Any]] | None, name: str) -> list[Any] | None:
    """Copies of the tools or documents in a list; ``name`` says which they are for an error."""
    if objects is None:
        return None
    if isinstance(objects, (list, tuple)) and any(map(callable, objects)):
        raise TemplateError(f"{name}: give the JSON schema of a function, not the function")
    plain = _plain(objects, name)
    if not _is_list_of_objects(plain):
        raise TemplateError(f"{name}: expected a list of objects")
    return list(plain)


def plain_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of what a template finds by names of its own, such as ``enable_thinking``."""
    plain = _plain({} if variables is None else variables, "chat_template_kwargs")
    if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
        raise TemplateError("chat_template_kwargs: expected names and values")
    for name in _RESERVED:
        if name in plain:
            raise TemplateError(f"chat_template_kwargs: {name} is an option of its own")
    return plain


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__:.60}"


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """JSON values of exactly the built-in types; objects of dataclasses and pydantic as theirs."""
    if depth > _MAX_DEPTH:
        raise TemplateError(f"{where}: nested more than {_MAX_DEPTH} deep")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):  # a subclass has more methods than a template may call
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain_key(k, where): _plain(v, where, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _plain(members, where, depth + 1)
    if callable(getattr(value, "model_dump", None)):  # pydantic's, as the openai package returns
        return _plain(value.model_dump(), where, depth + 1)
    raise TemplateError(f"{where}: {_kind(value)} is no JSON value")


def _plain_key(key: Any, where: str) -> Any:
    if isinstance(key, (str, int, float)) or key is None:
        return _plain(key, where)
    raise TemplateError(f"{where}: {_kind(key)} is no name in JSON")


def joined_parts(content: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a content: parts have a line break between them."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def joined_where_needed(write: Write, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` with their parts joined into one text where a template does not read parts.

    Most templates know texts only: they would fail, or write a list as Python spells it. Whether
    one does is seen by rendering marks in place of the parts' texts.
    """
    if not any(isinstance(message.get("content"), list) for message in messages):
        return messages
    mark = secrets.token_hex(8)
    probe = [dict(message) for message in messages]
    for number, message in enumerate(probe):
        if isinstance(message.get("content"), list):
            parts = enumerate(message["content"])
            message["content"] = [{**part, "text": f"{mark}-{number}-{n};"} for n, part in parts]
    try:
        written = write(probe)
    except TemplateError:
        written = ""
    return [
        {**message, "content": joined_parts(message["content"])}
        if isinstance(message.get("content"), list) and not _are_read(marked["content"], written)
        else message
        for message, marked in zip(messages, probe, strict=True)
    ]


def _are_read(parts: list[dict[str, Any]], written: str) -> bool:
    """Whether the texts of ``parts`` are written, and not as members of a list."""
    member = r"""['"]text['"]: ?['"]"""
    texts = [part["text"] for part in parts]
    return bool(texts) and all(
        text in written and not re.search(member + text, written) for text in texts
    )


class FinalMessage:
    """The last message, which is to be continued: a mark behind it shows where it is written."""

    def __init__(self, messages: list[dict[str, Any]], field: bool | str) -> None:
        name = field if isinstance(field, str) else "content"
        final = dict(messages[-1])
        # A space at its end shows whether the template trims, and the text before it too.
        self._mark = secrets.token_hex(16) + " "
        value = final.get(name)
        if isinstance(value, list) and value:
            *before, part = value
            self._text = part["text"]
            final[name] = [*before, {**part, "text": self._text + self._mark}]
        elif isinstance(value, str):
            self._text = value
            same = [n for n in _REASONING if name in _REASONING and final.get(n) == value]
            final.update(dict.fromkeys([name, *same], value + self._mark))
        else:
            raise TemplateError(f"continue_final_message: the last message has no {name}")
        self.marked = [*messages[:-1], final]

    def cut(self, text: str) -> str:
        """``text``, a rendering of ``marked``, up to where the last message ends in it."""
        end = text.rfind(self._mark[:-1])
        if end < 0 or self._text.strip() not in text:
            raise TemplateError(
                "continue_final_message: the chat template does not write the last message as it is"
            )
        text = text[:end] if text.startswith(self._mark, end) else text[:end].rstrip()
        for mark in (self._mark, self._mark[:-1]):  # of a text that is written several times
            text = text.replace(mark, "")
        return text
