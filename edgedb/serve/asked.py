"""One request to the engine: prompts, and how each is to be answered. Knows no HTTP.

``read_...`` of an endpoint's module makes one and a ``Reply`` from a body; ``answered`` does both
in the calling thread, for whoever has no connection to serve::

    asked, reply = read_chat(served, body)
    document = answered(served, asked, reply)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from ..run.completion import Chunk, Stats, TokenLogprobs
from ..run.engine import Model
from ..run.loaded import LoadedModel
from ..run.logprobs import token_logprobs
from ..run.request import Progress, Request, Sink
from ..run.session import Session
from ..run.together import AT_ONCE, Begin, Cancelled, together
from .errors import Refused
from .served import Served

_SCORED_AT_ONCE = 32  # rows of logits in memory while a prompt's own probabilities are taken
MAX_ANSWERS = 128  # of one request
_LOOK_SECONDS = 0.04  # how often who waits for a prompt looks whether it was cancelled


@dataclass(frozen=True)
class Asked:
    """Prompts and how to answer them; each gets ``n`` answers, answer i with ``seed + i``."""

    prompts: tuple[list[int], ...]
    request: Request
    n: int = 1
    stream: bool = False
    progress: bool = False  # whether the reply wants to hear of it
    scores: bool = False  # whether a prompt's own tokens come first, with probabilities

    def seed_of(self, index: int) -> int:
        """Of an answer, by ``Chunk.index``."""
        return (self.request.params.seed or 0) + index % self.n

    def check(self, served: Served) -> None:
        """Raises what answering would raise, before anything is read."""
        model, most = served.model, self.request.max_tokens or 0
        if self.answers > MAX_ANSWERS:
            raise Refused(400, f"n: more than {MAX_ANSWERS} answers", param="n")
        for ids in self.prompts:
            if not ids:
                raise Refused(400, "the prompt is empty; give at least one token", param="prompt")
            if len(ids) + max(most, 1) > model.context:
                more = f" and max_tokens asks for {most} more" if most else ""
                raise Refused(
                    400,
                    f"the prompt has {len(ids)} tokens{more}; the context has room for "
                    f"{model.context} together",
                    code="context_length_exceeded",
                    param="messages",
                )
            room = model.admission.most
            wanted = min(len(ids) + most, model.context) if most else model.context
            if room is not None and wanted > room:
                raise Refused(
                    400,
                    f"{wanted} positions for an answer are more than the {room} in memory; ask for "
                    "fewer tokens, or serve with more --cache-tokens",
                    code="context_length_exceeded",
                    param="max_tokens",
                )
        self.request.sampler(model)

    @property
    def answers(self) -> int:
        """Answers to all prompts."""
        return len(self.prompts) * self.n

    def chunks(
        self,
        served: Served,
        cancelled: Cancelled,
        progress: Progress | None = None,
        at_once: int = AT_ONCE,
        sink: Sink | None = None,
    ) -> Iterator[Chunk]:
        """All answers by ``Chunk.index``, ``at_once`` of them together; the prompt of several is
        read once. ``progress`` hears of the first prompt. Of an only answer, chunks may go to
        ``sink`` instead."""
        begins: list[Begin] = []
        for ids in self.prompts:
            prompt = _Prompt(self, served.model, ids, len(begins))
            heard = progress if self.progress and not begins else None
            begins.append(partial(prompt.first, heard, sink if self.answers == 1 else None))
            begins += [partial(prompt.other, answer) for answer in range(1, self.n)]
        return together(begins, at_once, cancelled)

    def of(self, index: int, cancelled: Cancelled) -> Request:
        """What the answer ``index`` is to be."""
        params = replace(self.request.params, seed=self.seed_of(index))
        return replace(self.request, params=params, cancelled=cancelled)

    def score(self, session: Session, ids: list[int]) -> Iterator[Chunk]:
        """``ids`` as chunks without a reason, from the model's probabilities for them."""
        model, stats = session.model, Stats(prompt_tokens=len(ids))
        row = None
        for start in range(0, len(ids), _SCORED_AT_ONCE):
            part = ids[start : start + _SCORED_AT_ONCE]
            rows = session.logits_of(part)
            for offset, token in enumerate(part):
                before, row = row, rows[offset]
                yield Chunk("", token, None, stats, self._score(model, before, token))

    def _score(self, model: LoadedModel, logits: Any, token: int) -> TokenLogprobs:
        if logits is None:  # nothing comes before the first one
            text = model.tokenizer.token_bytes(token, False).decode("utf-8", "replace")
            return TokenLogprobs(token, text, math.nan)
        n = self.request.logprobs or 0
        return token_logprobs(logits, token, n, model.ops, model.tokenizer)


class _Prompt:
    """A prompt and its answers: the first one reads it, the others find it in memory."""

    def __init__(self, asked: Asked, model: Model, ids: list[int], index: int) -> None:
        """``index`` of the first answer."""
        self._asked, self._model, self._ids, self._index = asked, model, ids, index
        self._is_read = threading.Event()
        self._scored: list[Chunk] = []

    def first(
        self, progress: Progress | None, sink: Sink | None, cancelled: Cancelled
    ) -> Iterator[Chunk]:
        request = replace(self._asked.of(self._index, cancelled), progress=progress, sink=sink)
        try:
            session = self._model.session()
            if self._asked.scores:
                for chunk in self._asked.score(session, self._ids):
                    self._scored.append(chunk)
                    yield chunk
            for chunk in session.start(self._ids, request):
                self._is_read.set()
                yield chunk
        finally:
            self._is_read.set()

    def other(self, answer: int, cancelled: Cancelled) -> Iterator[Chunk]:
        while not self._is_read.wait(_LOOK_SECONDS) and not cancelled():
            pass
        yield from self._scored
        request = self._asked.of(self._index + answer, cancelled)
        yield from self._model.session().start(self._ids, request)


class Task(Protocol):
    """What a request asks of the engine."""

    @property
    def answers(self) -> int:
        """How many may be made at once."""

    @property
    def stream(self) -> bool:
        """Whether events are wanted as they come."""

    @property
    def progress(self) -> bool:
        """Whether the reply wants to hear how far a prompt is read."""

    def chunks(
        self,
        served: Served,
        cancelled: Cancelled,
        progress: Progress | None = None,
        at_once: int = 1,
        sink: Sink | None = None,
    ) -> Iterator[Any]:
        """What the reply takes, ``Chunk`` or other things; it may go to ``sink`` instead."""


class Reply(Protocol):
    """What becomes of chunks: events of a stream as they come, or one document at the end."""

    def begin(self) -> list[Any]:
        """Events before anything is read."""

    def push(self, chunk: Any) -> list[Any]:
        """Events of one more chunk."""

    def reading(self, done: int, total: int) -> list[Any]:
        """Events of a prompt that is being read."""

    def finish(self) -> list[Any]:
        """Events at the end."""

    def document(self) -> Any:
        """Everything, after ``finish``."""


def answered(
    served: Served,
    asked: Task,
    reply: Reply,
    cancelled: Cancelled = lambda: False,
    progress: Progress | None = None,
) -> Any:
    """The document that answers. Raises ``EdgeDBError``."""
    reply.begin()
    for chunk in asked.chunks(served, cancelled, progress):
        reply.push(chunk)
    reply.finish()
    return reply.document()
