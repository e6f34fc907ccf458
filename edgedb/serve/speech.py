"""What a model writes, taken apart: what it thinks, what it says, which tools it calls."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Literal

from ..run.completion import Chunk
from ..text.tokenizer import Tokenizer
from .tool_formats import ToolFormat

_THINKS, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Said:
    """A piece of text."""

    kind: Literal["content", "reasoning"]
    text: str


@dataclass(frozen=True)
class Call:
    """A call of a tool, whole: ``arguments`` is valid JSON."""

    id: str
    name: str
    arguments: str


class Speech:
    """Takes the chunks of one answer and gives out what they complete."""

    def __init__(
        self, tokenizer: Tokenizer, tools: ToolFormat | None, thinks: bool | None = False
    ) -> None:
        """``tools``: how calls are written, if there may be any. ``thinks``: True if the prompt has
        begun a thought, None if the answer may begin one, False if ``<think>`` is text."""
        self._tokenizer, self._tools, self._thinks = tokenizer, tools, thinks
        self.calls = 0
        self._held = ""
        self._is_after = False  # behind a thought or a line break of its end
        self._state: Literal["open", "reasoning", "content", "calls"] = "content"
        if thinks:
            self._state = "reasoning"
        elif thinks is None or (tools is not None and not tools.begin):
            self._state = "open"

    def push(self, chunk: Chunk) -> list[Said | Call]:
        """What ``chunk`` completes."""
        text = chunk.text
        if self._tools is not None and chunk.token in self._tokenizer.special_ids:
            spelling = self._tokenizer.token_bytes(chunk.token or 0, False).decode()
            text += spelling if spelling == self._tools.begin.strip() else ""
        found = self._take(text) if text else []
        return [*found, *self._finish()] if chunk.finish_reason is not None else found

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self._state == "reasoning"

    @property
    def _end(self) -> str:
        """The text that ends the present state."""
        if self._state == "reasoning":
            return _THOUGHT
        if self._state == "content" and self._tools is not None:
            return self._tools.begin.strip()
        return ""

    def _take(self, text: str) -> list[Said | Call]:
        if self._state == "open":
            return self._opened(text)
        if self._state == "calls":
            return self._called(text)
        text, self._held, end = self._held + text, "", self._end
        if not end:
            return self._say(text)
        at = text.find(end)
        if at < 0:
            kept = len(text) - _beginning(text, end)
            self._held = text[kept:]
            return self._say(text[:kept])
        said = self._say(text[:at])
        self._is_after = True
        self._state = "content" if self._state == "reasoning" else "calls"
        return [*said, *self._take(text[at + len(end) :])]

    def _say(self, text: str) -> list[Said | Call]:
        assert self._state in ("reasoning", "content"), "calls are not said"
        if self._is_after:
            text = text.lstrip("\n")
        if not text:
            return []
        self._is_after = False
        return [Said(self._state, text)]

    def _opened(self, text: str) -> list[Said | Call]:
        """The first characters decide what this is."""
        self._held += text
        begun = self._held.lstrip()
        may_think = self._thinks is None and _THINKS.startswith(begun[: len(_THINKS)])
        if not begun or (may_think and len(begun) < len(_THINKS)):
            return []
        whole, self._held = self._held, ""
        if may_think:
            self._state, whole, self._is_after = "reasoning", begun.removeprefix(_THINKS), True
        else:
            bare = self._tools is not None and not self._tools.begin
            self._state = "calls" if bare and begun.startswith("{") else "content"
        return self._take(whole)

    def _called(self, text: str) -> list[Said | Call]:
        """Calls that are complete now: a grammar wrote them, so their ends are all there is to
        look for."""
        assert self._tools is not None, "only tools are called"
        self._held += text
        found: list[Said | Call] = []
        while "}" in text and (start := self._held.find("{")) >= 0:
            try:
                call, end = json.JSONDecoder().raw_decode(self._held, start)
            except ValueError:
                break
            self._held = self._held[end:]
            arguments = json.dumps(call[self._tools.arguments], ensure_ascii=False)
            self.calls += 1
            found.append(Call(f"call_{secrets.token_hex(12)}", str(call["name"]), arguments))
        return found

    def _finish(self) -> list[Said | Call]:
        """What was held back. Of a call that was cut nothing is said."""
        if self._state == "calls" or not self._held:
            return []
        if self._state == "open":
            self._state = "content"
        rest, self._held = self._held, ""
        return self._say(rest)


def _beginning(text: str, end: str) -> int:
    """Length of the longest tail of ``text`` that begins ``end``."""
    for length in range(min(len(end) - 1, len(text)), 0, -1):
        if end.startswith(text[-length:]):
            return length
    return 0
