"""A sequence of tokens: read a prompt, write an answer.

Each ``Session`` owns a cache and is used by one thread at a time. Everything that makes text goes
through ``Session.start``, once its arguments are checked.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import instance, optional, whole
from ..choose.needed import needed
from ..choose.sampling import Processor, Sampler, SamplingParams
from ..errors import BusyError, ContextFullError, EdgeDBError
from ..model.head import Needed
from ..ops.selection import Ids
from .answers import Answers
from .completion import Chunk, Completion, FinishReason, Stats, TokenLogprobs, collect
from .loaded import LoadedModel, Prompt
from .logprobs import token_logprobs
from .reader import Choice, Reader
from .request import RULES, Progress, Request, SamplingOptions
from .session_file import read_session, write_session
from .writer import Writer

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

_SAMPLER = optional(instance(Sampler, "a Sampler"))

__all__ = ["Chunk", "Completion", "FinishReason", "Progress", "Session", "Stats", "collect"]


class Session(Answers):
    """A sequence of tokens and the cache of what the model made of them.

    Use it from one thread at a time: a second one gets ``BusyError``.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.extra: dict[str, Any] = {}  # the caller's own, saved with the session
        self._reader = Reader(model)
        self._uses: list[weakref.ref[_Use]] = []  # the first of them has the session

    @property
    def tokens(self) -> list[int]:
        """Ids of the whole sequence, a copy."""
        return list(self._reader.ids.tolist())

    @property
    def position(self) -> int:
        """Number of tokens in the sequence."""
        return self._reader.length

    @property
    def context(self) -> int:
        """Number of tokens the session can hold."""
        return self._reader.cache.capacity

    @property
    def size_bytes(self) -> int:
        """Bytes of memory once the context is full; see ``docs/python-api.md`` for the formula.

        The cache, which is most of it, takes memory only as far as it is filled.
        """
        return self._reader.size_bytes

    def prefill(
        self,
        ids: Sequence[int],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Append ``ids`` and read them. Raises ``ContextFullError`` if they do not fit.

        After a cancel the sequence ends with the last token that was read.
        """
        RULES["progress"]("progress", progress)
        RULES["cancelled"]("cancelled", cancelled)
        ids = self.model.check_ids("ids", ids)
        with self._exclusive():
            self._reader.append(ids)
            if self._reader.length:
                self._reader.read(progress, cancelled)

    def decode(self, sampler: Sampler | None = None) -> int:
        """Choose the next token (greedily without a sampler), append it and return it."""
        sampler = _SAMPLER("sampler", sampler)
        with self._exclusive():
            sampler = sampler or Sampler(SamplingParams(temperature=0), self.model.ops)
            return self._decode(sampler, self._reader.logits(self._needed_by(sampler)))

    def logits(self) -> np.ndarray:
        """Logits after the last token, float32 ``(vocab,)``, a copy."""
        with self._exclusive():
            return self._reader.logits().copy()

    def logits_of(self, ids: Sequence[int]) -> np.ndarray:
        """Append ``ids``; logits after each of them, float32 ``(len(ids), vocab_size)``."""
        ids = self.model.check_ids("ids", ids)
        with self._exclusive():
            return self._reader.logits_of(ids)

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        with self._exclusive():
            self._reader.rewind(whole(0, self.position)("position", position))

    def fork(self) -> Session:
        """An independent session that holds the same tokens.

        What was read is shared, not copied: each writes into pages of its own from here on.
        """
        with self._exclusive():
            other = Session(self.model)
            other.extra = copy.deepcopy(self.extra)
            other._reader.go_on_from(self._reader)
            return other

    def save(self, path: str | PathLike[str]) -> None:
        """Write tokens, cache and ``extra`` to a file, for ``Model.load_session``.

        The file appears complete or not at all. Raises ``EdgeDBError`` if it cannot be written or
        ``extra`` is not JSON.
        """
        with self._exclusive():
            fingerprint = self.model.session_fingerprint
            write_session(path, fingerprint, self._reader.ids, self._reader.cache, self.extra)

    @classmethod
    def load(cls, model: LoadedModel, path: str | PathLike[str]) -> Session:
        """The session that ``save`` wrote; reads nothing again.

        Raises ``FormatError`` if the file is damaged or was saved with another model or cache type,
        ``ContextFullError`` if it holds more than the model's context.
        """
        session = cls(model)
        cache, vocab_size = session._reader.cache, model.config.vocab_size
        tokens, session.extra = read_session(path, model.session_fingerprint, vocab_size, cache)
        session._reader.append(tokens.tolist())
        return session

    def _answering(self) -> Session:
        return self

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_ids: Sequence[int] | None = None,
        params: SamplingParams | None = None,
        logprobs: int | None = None,
        processors: Processor | Sequence[Processor] | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        prompt_lookup: int | None = None,
        draft_tokens: int | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Make the session hold exactly ``prompt``, a text or ids, then continue it.

        What the prompt and the session have in common at their beginning is not read again.

        ``max_tokens`` bounds the answer (default: the rest of the context). ``stop`` ends it where
        one of the texts appears, ``stop_ids`` at one of the tokens. ``sampling`` are fields of
        ``SamplingParams`` and change those of ``params``. ``processors`` are called as ``logits =
        processor(ids, logits)`` before each choice, with int32 ``(n,)`` and float32 ``(vocab,)``.
        ``logprobs`` asks for the probability of each token and of so many most likely ones.
        ``json_schema`` (an object or its text), ``regex`` or ``grammar`` (Lark) give the answer a
        form: it ends with "stop" when it is complete, and with "length" if it could not be.
        ``prompt_lookup`` is the number of tokens to guess at once from earlier text; 0 guesses
        none. ``draft_tokens`` bounds those that the model's draft guesses at once (default: 16).
        Both change the speed, not the text.

        ``progress`` is called with the tokens read and to read. ``cancelled`` is asked between
        tokens, and often enough while a prompt is read that a cancel takes effect within 100 ms;
        the answer so far stays in the session.

        Raises ``ContextFullError`` before anything is read if the prompt does not fit.
        """
        request = Request.of(
            max_tokens=max_tokens,
            stop=stop,
            stop_ids=stop_ids,
            params=params,
            logprobs=logprobs,
            processors=processors,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
            prompt_lookup=prompt_lookup,
            draft_tokens=draft_tokens,
            progress=progress,
            cancelled=cancelled,
            **sampling,
        )
        return self.start(self.model.prompt_ids(prompt), request)

    def start(self, ids: list[int], request: Request) -> Iterator[Chunk]:
        """What ``stream`` does, once its arguments are checked."""
        if not ids:
            raise EdgeDBError("the prompt is empty; give at least one token")
        if len(ids) >= self.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it{self.model.larger_context}"
            )
        return self._stream(ids, request, request.sampler(self.model))

    def _stream(self, ids: list[int], request: Request, sampler: Sampler) -> Iterator[Chunk]:
        end_ids = {*request.stop_ids, *self.model.tokenizer_spec.eos_ids}
        room = self.context - len(ids)
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        writer = Writer(self.model.tokenizer, ids, request.stop)

        def take() -> None:
            writer.stats.read_tokens = self._reader.hold(ids)

        # Admission ends before what was read is offered, so that there is room to keep it.
        with (
            self._exclusive(),
            self._reader.guessing(
                len(ids) + max_tokens,
                request.prompt_lookup,
                request.draft_tokens,
                request.cancelled,
            ) as guesser,
            self.model.admission.answering(
                self._reader, len(ids) + max_tokens, request.cancelled, take
            ) as admitted,
            self._choosing(sampler, end_ids, request, writer),
        ):
            if not admitted:
                yield writer.end("cancelled")
                return
            started = time.perf_counter()
            whole = request.logprobs is not None
            wanted = None if whole else self._needed_by(sampler)
            logits = self._reader.read(request.progress, request.cancelled, wanted)
            writer.begin(time.perf_counter() - started, guesser)

            reason: FinishReason | None = "cancelled" if logits is None else None
            while reason is None:
                if sampler.finished:
                    reason = "stop"
                    break
                if request.cancelled is not None and request.cancelled():
                    reason = "cancelled"
                    break
                if writer.stats.completion_tokens == max_tokens:
                    reason = "length"
                    break
                wanted = None if whole else self._needed_by(sampler)
                logits = self._reader.logits(wanted)
                token = self._decode(sampler, logits)
                if token in end_ids:
                    reason = "stop"
                    break
                chunk = writer.write(token, self._logprobs(logits, token, request.logprobs))
                yield chunk
                if chunk.finish_reason is not None:
                    return
            yield writer.end(reason)

    def _choosing(
        self, sampler: Sampler, end_ids: set[int], request: Request, writer: Writer
    ) -> AbstractContextManager[None]:
        """Tokens may be chosen by whoever computes, if that calls no code of the caller's, is quick
        and leaves nothing of the logits to be asked for."""
        if request.processors or sampler.constrained or request.logprobs is not None:
            return nullcontext()
        sink, cancelled = request.sink, request.cancelled

        def wanted(ids: Ids) -> Needed | None:
            return self._needed_by(sampler, ids)

        if sink is None or request.stop:  # a stop text ends the answer, which its owner does
            return self._reader.choosing(Choice(sampler, end_ids, wanted))
        put = sink.put

        def write(token: int) -> bool:
            if cancelled is not None and cancelled():
                return False
            put(writer.write(token))
            return True

        return self._reader.choosing(Choice(sampler, end_ids, wanted, write, sink.flush))

    def _decode(self, sampler: Sampler, logits: np.ndarray) -> int:
        token = self._reader.chosen()
        if token is None:
            token = sampler.sample(logits, self._reader.ids)
        self._reader.append([token])
        return token

    def _needed_by(self, sampler: Sampler, ids: Ids | None = None) -> Needed | None:
        """The logits it looks at after ``ids``, by default all that are here, if the model's head
        can leave others out."""
        if self.model.network.two_stage is None:
            return None
        return needed(sampler, self._reader.ids if ids is None else ids)

    def _logprobs(self, logits: np.ndarray, token: int, n: int | None) -> TokenLogprobs | None:
        if n is None:
            return None
        return token_logprobs(logits, token, n, self.model.ops, self.model.tokenizer)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        use = _Use()
        self._uses.append(weakref.ref(use, self._uses.remove))
        try:
            if self._uses[0]() is not use:
                raise BusyError("this session is answering already; use a second session")
            self._reader.settle()
            yield
        finally:
            # Not a lock to release: Ctrl-C may come before this, and then the use ends with the
            # frame.
            del use


class _Use:
    """One use of a session: it lasts as long as this is alive."""

    __slots__ = ("__weakref__",)
