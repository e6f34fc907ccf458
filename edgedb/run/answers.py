"""The calls that answer a text or a conversation; a model and a session both have them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from ..arguments import flag, optional, whole
from ..gate import gate
from ..text.messages import Message
from ..text.transcript import encode_keeping
from .completion import Chunk, Completion, collect
from .loaded import LoadedModel, Prompt
from .request import AnswerOptions, Request
from .together import AT_ONCE, Cancelled, together

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack


class Answering(Protocol):
    """The part of a session that an answer needs."""

    @property
    def model(self) -> LoadedModel: ...

    @property
    def tokens(self) -> list[int]:
        """Ids of the whole sequence."""

    def start(self, ids: list[int], request: Request) -> Iterator[Chunk]:
        """Answer behind ``ids``, of which the session may hold a beginning."""

    def fork(self) -> Answering:
        """An independent session that holds the same tokens."""


class Answers:
    """``generate`` and ``chat``. Options are those of ``Session.stream``."""

    def _answering(self) -> Answering:
        """The session that answers."""
        raise NotImplementedError

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = False,
        n: None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = False,
        n: int,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[True],
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[Chunk]: ...

    def generate(
        self,
        prompt: Prompt,
        *,
        stream: bool = False,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | list[Completion] | Iterator[Chunk]:
        """Continue ``prompt``, a text or token ids.

        Returns a ``Completion``, or with ``stream`` its chunks as they come. ``n`` asks for several
        answers, a list or their chunks with ``Chunk.index``; the prompt is read once, answer i has
        the seed ``seed + i``, and all are written at once, in threads, unless ``processors`` are
        given. Then ``cancelled`` is asked by each of them.
        """
        session = self._answering()
        return _answer(session, session.model.prompt_ids(prompt), stream, n, options)

    @overload
    def chat(
        self,
        messages: Iterable[Message],
        *,
        stream: Literal[False] = False,
        n: None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Iterable[Message],
        *,
        stream: Literal[False] = False,
        n: int,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    def chat(
        self,
        messages: Iterable[Message],
        *,
        stream: Literal[True],
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[Chunk]: ...

    def chat(
        self,
        messages: Iterable[Message],
        *,
        stream: bool = False,
        n: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | list[Completion] | Iterator[Chunk]:
        """Answer a list of ``{"role": ..., "content": ...}``; otherwise like ``generate``.

        Give the whole conversation, with earlier answers as they came: of its text, a session reads
        only what it does not hold. ``tools`` and what follows are for the chat template, as in
        ``Model.chat_text``; with ``continue_final_message`` the answer is what is new. Raises
        ``TemplateError`` if the model has no chat template, or it refuses what it is given.
        """
        session = self._answering()
        text = session.model.chat_text(
            messages,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        ids = encode_keeping(session.model.tokenizer, text, session.tokens)
        return _answer(session, ids, stream, n, options)


def _answer(
    session: Answering, ids: list[int], stream: bool, n: int | None, options: AnswerOptions
) -> Completion | list[Completion] | Iterator[Chunk]:
    stream, n = flag("stream", stream), optional(whole(1))("n", n)
    request = Request.of(**options)
    if n is None:
        chunks = session.start(ids, request)
        return chunks if stream else collect(chunks)
    chunks = _several(session, ids, n, request)
    if stream:
        return chunks
    found: list[list[Chunk]] = [[] for _ in range(n)]
    for chunk in chunks:
        found[chunk.index].append(chunk)
    return [collect(one) for one in found]


def _several(session: Answering, ids: list[int], n: int, request: Request) -> Iterator[Chunk]:
    """``n`` answers from one reading of the prompt."""
    for _ in session.start(ids, replace(request, max_tokens=0)):
        pass
    forking, params = threading.Lock(), request.params

    def begin(index: int, cancelled: Cancelled) -> Iterator[Chunk]:
        with gate.lock, forking:  # a session does one thing at a time
            fork = session.fork()
        seed = None if params.seed is None else params.seed + index
        own = replace(request, params=replace(params, seed=seed), cancelled=cancelled)
        return fork.start(ids, own)

    # A processor of the caller's may keep in mind where it is: it gets one answer at a time.
    at_once = 1 if request.processors else AT_ONCE
    begins = [partial(begin, index) for index in range(n)]
    return together(begins, at_once, request.cancelled or (lambda: False))
