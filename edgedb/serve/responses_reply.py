"""The answer to a response's request: items that grow, each told by events of its own."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from ..run.completion import Chunk
from .asked import Asked
from .chat import logprobs_entry
from .conversation import Conversation
from .served import Served
from .speech import Call
from .usage import Usage


class ResponseReply:
    """A ``Reply`` as responses have it."""

    def __init__(
        self,
        served: Served,
        asked: Asked,
        conversation: Conversation,
        said: Mapping[str, Any],
    ) -> None:
        """``said``: members of the request that are repeated, None where there were none."""
        self._served, self._asked = served, asked
        self._speech = conversation.speech(served)
        self._said = {key: value for key, value in said.items() if value is not None}
        self.usage = Usage()
        self._id, self._created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is growing
        self._parts: list[str] = []  # its text
        self._logprobs: list[dict[str, Any]] = []
        self._is_cut = False
        self._thought = 0  # tokens

    def begin(self) -> list[Any]:
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def reading(self, done: int, total: int) -> list[Any]:
        return []

    def push(self, chunk: Chunk) -> list[Any]:
        self.usage.of[0] = chunk.stats
        self._thought += chunk.token is not None and self._speech.is_thinking
        self._is_cut |= chunk.finish_reason == "length"
        if chunk.logprobs is not None:
            self._logprobs.append(logprobs_entry(chunk.logprobs, self._served))
        events: list[Any] = []
        for piece in self._speech.push(chunk):
            if isinstance(piece, Call):
                events += [*self._close(), *self._call(piece)]
                continue
            kind = "reasoning" if piece.kind == "reasoning" else "message"
            if self._open is None or self._open["type"] != kind:
                events += [*self._close(), *self._begin(kind)]
            self._parts.append(piece.text)
            events.append(self._delta(piece.text))
        return events

    def finish(self) -> list[Any]:
        events = [] if self._output or self._open else self._begin("message")
        events += self._close()
        end = "incomplete" if self._is_cut else "completed"
        return [*events, self._event(f"response.{end}", response=self.document())]

    def document(self) -> Any:
        return self._response("incomplete" if self._is_cut else "completed")

    def _begin(self, kind: str) -> list[Any]:
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "content": []}
        else:
            item |= {"id": f"rs_{secrets.token_hex(12)}", "summary": [], "content": []}
        self._open, self._parts = item, []
        where = {"output_index": len(self._output)}
        events = [self._event("response.output_item.added", item=dict(item), **where)]
        part = self._part("")
        return [*events, self._event("response.content_part.added", part=part, **self._place())]

    def _part(self, text: str) -> dict[str, Any]:
        assert self._open is not None, "an item has begun"
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        wanted = self._asked.request.logprobs is not None
        logprobs = list(self._logprobs) if wanted else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None, "an item has begun"
        where = {"item_id": self._open["id"], "output_index": len(self._output)}
        return {**where, "content_index": 0}

    def _delta(self, text: str) -> dict[str, Any]:
        assert self._open is not None, "an item has begun"
        if self._open["type"] == "reasoning":
            return self._event("response.reasoning_text.delta", delta=text, **self._place())
        return self._event("response.output_text.delta", delta=text, logprobs=[], **self._place())

    def _close(self) -> list[Any]:
        """The growing item is whole."""
        item = self._open
        if item is None:
            return []
        text, place = "".join(self._parts), self._place()
        part = self._part(text)
        if item["type"] == "reasoning":
            done = self._event("response.reasoning_text.done", text=text, **place)
        else:
            logprobs = part["logprobs"]
            done = self._event("response.output_text.done", text=text, logprobs=logprobs, **place)
            self._logprobs = []
        item |= {"status": "incomplete" if self._is_cut else "completed", "content": [part]}
        events = [done, self._event("response.content_part.done", part=part, **place)]
        where = {"output_index": len(self._output)}
        events.append(self._event("response.output_item.done", item=item, **where))
        self._output.append(item)
        self._open = None
        return events

    def _call(self, call: Call) -> list[Any]:
        item = {
            "type": "function_call",
            "id": f"fc_{secrets.token_hex(12)}",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        index = len(self._output)
        place = {"item_id": item["id"], "output_index": index}
        whole = {**item, "arguments": call.arguments, "status": "completed"}
        self._output.append(whole)
        name = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", item=item, output_index=index),
            self._event(f"{name}.delta", delta=call.arguments, **place),
            self._event(f"{name}.done", arguments=call.arguments, name=call.name, **place),
            self._event("response.output_item.done", item=whole, output_index=index),
        ]

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **members}

    def _response(self, status: str) -> dict[str, Any]:
        params, is_over = self._asked.request.params, status != "in_progress"
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": None,
            "max_output_tokens": self._asked.request.max_tokens,
            "model": self._served.name,
            "output": list(self._output) if is_over else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "metadata": {},
            "usage": self._usage() if is_over else None,
            **self._said,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._thought},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
