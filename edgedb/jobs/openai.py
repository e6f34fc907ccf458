"""A line in OpenAI's form of a batch: the request to a server, and what a server would answer.

The server's own reading and writing do the work. What in an answer is of the moment, its time, its
random names and its speed, is taken out: the same line has the same record, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..display import quoted
from ..errors import EdgeDBError
from ..run.engine import Model
from ..serve.asked import Asked, Reply
from ..serve.chat import read_chat
from ..serve.errors import Refused, openai_error, refusal, unsupported
from ..serve.served import Served
from .defaults import Defaults
from .lines import Line
from .records import Record, responded

_READERS: dict[str, Callable[[Served, Any], tuple[Asked, Reply]]] = {
    "/v1/chat/completions": read_chat,
}
_LENGTHS = {"max_tokens", "max_completion_tokens", "n_predict"}


class OpenAI:
    """Answers lines of this form with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._defaults = defaults
        template = defaults.chat_template_kwargs
        self._served = Served(model, params=defaults.params, template=template)

    def begin(
        self, line: Line, cancelled: Callable[[], bool]
    ) -> tuple[Iterator[Any], Callable[[Sequence[Any]], Record]]:
        """What the engine says to ``line``, and what makes the record of all of it.

        Raises ``EdgeDBError`` for a line that is wrong.
        """
        read = _READERS.get(line.url or "")
        if read is None:
            raise Refused(404, f"url = {quoted(line.url)}: expected {' or '.join(_READERS)}")
        body = {**line.request}
        if body.pop("stream", False):
            raise unsupported("stream", "a batch has no streams")
        if body.get("seed") is None:
            body["seed"] = line.seed(self._defaults.params.seed or 0)
        asked, reply = read(self._served, body)
        if not body.keys() & _LENGTHS:  # a line that asks for no length fits in any
            request = replace(asked.request, max_tokens=self._defaults.max_tokens)
            asked = replace(asked, request=request)

        def record(chunks: Sequence[Any]) -> Record:
            reply.begin()
            for chunk in chunks:
                reply.push(chunk)
            reply.finish()
            document = _settled(reply.document(), line)
            return responded(line, 200, document, document["usage"].get("completion_tokens", 0))

        return asked.chunks(self._served, cancelled), record


def refused(line: Line, error: EdgeDBError) -> Record:
    """The record of a line that a server would refuse."""
    answer = refusal(error)
    return responded(line, answer.status, openai_error(answer))


def _settled(document: dict[str, Any], line: Line) -> dict[str, Any]:
    """``document`` without what is of the moment."""
    document.pop("timings", None)
    if "id" in document:
        document["id"] = f"{document['id'].partition('-')[0]}-{line.key}"
    if "created" in document:
        document["created"] = 0
    document["usage"].pop("prompt_tokens_details", None)  # what had been read before
    for choice in document.get("choices", ()):
        calls = choice.get("message", {}).get("tool_calls", ())
        for number, call in enumerate(calls):
            call["id"] = f"call_{line.key[:16]}_{choice['index']}_{number}"
    return document
