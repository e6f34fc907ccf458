"""What OpenAI's chats and completions have in common: answers that are the ``choices`` of events
and of one document."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .asked import Asked
from .served import Served
from .usage import Usage


@dataclass(kw_only=True)
class Answer:
    """One of the answers, as far as it has come."""

    reason: str | None = None
    timings: Mapping[str, Any] | None = None


Kind = TypeVar("Kind", bound=Answer)


class Choices(Generic[Kind]):
    """Most of a ``Reply``; ``_choice`` and what ``push`` notes are the subclass's own."""

    def __init__(
        self, served: Served, asked: Asked, include_usage: bool, prefix: str, kind: str
    ) -> None:
        """prefix: of the id; kind: what OpenAI calls the object."""
        self._served, self._asked, self._include_usage = served, asked, include_usage
        self.usage = Usage(asked.n)
        self.answers: dict[int, Kind] = {}
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    def _choice(self, index: int, answer: Kind) -> dict[str, Any]:
        """A whole answer, as the document has it."""
        raise NotImplementedError

    def _event(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A part of an answer, as a stream has it."""
        event = {**self._head, "choices": [choice]}
        return {**event, "usage": None} if self._include_usage else event

    def _last(self, event: dict[str, Any], index: int, answer: Kind) -> dict[str, Any]:
        """The last event of an answer."""
        return {**event, "timings": answer.timings, "seed": self._asked.seed_of(index)}

    def _progress(self, event: dict[str, Any], done: int, total: int) -> list[Any]:
        """An event with nothing in it but how far the prompt is read."""
        whole = len(self._asked.prompts[0])
        progress = {"total": whole, "cache": whole - total, "processed": whole - total + done}
        return [{**event, "prompt_progress": progress}]

    def finish(self) -> list[Any]:
        if not (self._asked.stream and self._include_usage):
            return []
        return [{**self._head, "choices": [], "usage": self.usage.openai()}]

    def document(self) -> Any:
        choices = [self._choice(index, one) for index, one in sorted(self.answers.items())]
        last = self.answers[max(self.answers)]
        return {
            **self._head,
            "choices": choices,
            "usage": self.usage.openai(),
            "timings": last.timings,
            "seed": self._asked.seed_of(0),
        }
