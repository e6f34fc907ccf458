"""A line in OpenAI's form of a batch: the request to a server, and what a server would answer.

The server's own reading and writing do the work. What in an answer is of the moment, its time, its
random names and its speed, is taken out: the same line has the same record, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..display import quoted
from ..errors import EdgeDBError
from ..run.engine import Model
from ..serve.asked import Asked, Reply, Task
from ..serve.chat import read_chat
from ..serve.completions import read_completion
from ..serve.embeddings import read_embeddings
from ..serve.errors import Refused, openai_error, refusal, unsupported
from ..serve.responses import read_response
from ..serve.served import Served
from .defaults import Defaults
from .lines import Line
from .records import Record, responded

_READERS: dict[str, Callable[[Served, Any], tuple[Task, Reply]]] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/v1/embeddings": read_embeddings,
    "/v1/responses": read_response,
}
_UNSEEDED = "/v1/embeddings"  # which leave nothing to chance
_LENGTHS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"}

# What in an answer is of the moment: speed and what had been read before, times, random names.
_SPEED = ("timings", "prompt_tokens_details", "input_tokens_details")
_TIMES = ("created", "created_at", "completed_at")
_NAMES = ("id", "call_id")
_RANDOM = re.compile(r"[a-z]+[-_](?=[0-9a-f]{16,}$)")
_ECHOED = ("tools", "metadata")  # the request's own, whatever it holds


class OpenAI:
    """Answers lines of this form with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._defaults = defaults
        self._served = Served(
            model,
            aliases=defaults.aliases,
            params=defaults.params,
            template=defaults.chat_template_kwargs,
        )

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
        if body.get("seed") is None and line.url != _UNSEEDED:
            body["seed"] = line.seed(self._defaults.params.seed or 0)
        asked, reply = read(self._served, body)
        if isinstance(asked, Asked) and not body.keys() & _LENGTHS:
            # Behind its check: what a run says is no reason to refuse a line that fits.
            request = replace(asked.request, max_tokens=self._defaults.max_tokens)
            asked = replace(asked, request=request)

        def record(chunks: Sequence[Any]) -> Record:
            reply.begin()
            for chunk in chunks:
                reply.push(chunk)
            reply.finish()
            document = _settled(reply.document(), line.key, {})
            usage = document["usage"]
            tokens = usage.get("completion_tokens", usage.get("output_tokens", 0))
            return responded(line, 200, document, tokens)

        return asked.chunks(self._served, cancelled), record


def refused(line: Line, error: EdgeDBError) -> Record:
    """The record of a line that a server would refuse."""
    answer = refusal(error)
    return responded(line, answer.status, openai_error(answer))


def _settled(value: Any, key: str, names: dict[str, str]) -> Any:
    """``value`` of an answer without what is of the moment; random ``names`` become those of the
    line, by its ``key``, in their order."""
    if isinstance(value, list):
        return [_settled(one, key, names) for one in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, one in value.items():
        if name in _NAMES and isinstance(one, str) and (prefix := _RANDOM.match(one)):
            found[name] = names.setdefault(one, f"{prefix[0]}{key}_{len(names)}")
        elif name in _TIMES and isinstance(one, int):
            found[name] = 0
        elif name not in _SPEED:
            found[name] = one if name in _ECHOED else _settled(one, key, names)
    return found
