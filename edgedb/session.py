"""A sequence of tokens: read a prompt, write an answer.

Each ``Session`` owns a cache and is used by one thread at a time. Everything that makes text goes
through ``Session.stream``.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import Answers, Prompt
from .completion import Chunk, Completion, FinishReason, Stats, TokenLogprobs, collect
from .errors import BusyError, ContextFullError, EdgeDBError
from .kvcache import KVCache
from .llama import MAX_BATCH, RunState
from .logprobs import token_logprobs
from .pace import Pace
from .request import Progress, Request
from .sampling import Processor, Sampler, SamplingParams
from .session_file import read_session, write_session
from .stopping import StopMatcher

if TYPE_CHECKING:
    from .engine import Model

__all__ = ["Chunk", "Completion", "FinishReason", "Progress", "Session", "Stats", "collect"]


class Session(Answers):
    """A sequence of tokens and the cache of what the model made of them.

    Use it from one thread at a time: a second one gets ``BusyError``.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.extra: dict[str, Any] = {}  # the caller's own, saved with the session
        self._cache = KVCache(model.config, model.ops, model.context, model.kv_dtype)
        self._state = RunState(model.config, model.ops)
        self._ids = np.zeros(model.context, np.int32)
        self._length = 0  # tokens in _ids; the first cache.length of them are in the cache
        self._logits: np.ndarray | None = None  # after the last token; None until it is read
        self._pace = Pace(MAX_BATCH)
        self._lock = threading.Lock()

    @property
    def tokens(self) -> list[int]:
        """Ids of the whole sequence, a copy."""
        return list(self._held.tolist())

    @property
    def position(self) -> int:
        """Number of tokens in the sequence."""
        return self._length

    @property
    def context(self) -> int:
        """Number of tokens the session can hold."""
        return self._cache.capacity

    @property
    def size_bytes(self) -> int:
        """Bytes of memory once the context is full; see ``docs/python-api.md`` for the formula.

        The cache, which is most of it, takes memory only as far as it is filled.
        """
        return self._cache.size_bytes + self._state.size_bytes + self._ids.nbytes

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
        with self._exclusive():
            self._append(ids)
            if self._length:
                self._read(progress, cancelled)

    def decode(self, sampler: Sampler | None = None) -> int:
        """Choose the next token (greedily without a sampler), append it and return it."""
        with self._exclusive():
            sampler = sampler or Sampler(SamplingParams(temperature=0), self.model.ops)
            return self._decode(sampler)

    def logits(self) -> np.ndarray:
        """Logits after the last token, float32 ``(vocab,)``, a copy."""
        with self._exclusive():
            return self._last_logits().copy()

    def logits_of(self, ids: Sequence[int]) -> np.ndarray:
        """Append ``ids``; logits after each of them, float32 ``(len(ids), vocab_size)``."""
        with self._exclusive():
            if self._cache.length < self._length:
                self._read()
            self._append(ids)
            out = np.empty((len(ids), self.model.config.vocab_size), np.float32)
            for start in range(0, len(ids), MAX_BATCH):
                batch = ids[start : start + MAX_BATCH]
                out[start : start + len(batch)] = self.model.llama.forward(
                    batch, self._cache, self._state, logits="all"
                )
            self._logits = out[-1].copy() if len(ids) else self._logits
            return out

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        with self._exclusive():
            if not 0 <= position <= self._length:
                raise EdgeDBError(
                    f"cannot rewind to {position}: the session holds {self._length} tokens"
                )
            self._rewind(position)

    def fork(self) -> Session:
        """An independent session that holds the same tokens.

        What was read is copied, not read again: 23 KB a token for SmolLM2-135M in float16.
        """
        with self._exclusive():
            other = Session(self.model)
            other.extra = copy.deepcopy(self.extra)
            other._ids[: self._length] = self._held
            other._length = self._length
            other._cache.copy_from(self._cache)
            other._logits = None if self._logits is None else self._logits.copy()
            return other

    def save(self, path: str | PathLike[str]) -> None:
        """Write tokens, cache and ``extra`` to a file, for ``Model.load_session``.

        The file appears complete or not at all. Raises ``EdgeDBError`` if it cannot be written or
        ``extra`` is not JSON.
        """
        with self._exclusive():
            fingerprint = self.model.file.fingerprint
            write_session(path, fingerprint, self._held, self._cache, self.extra)

    @classmethod
    def load(cls, model: Model, path: str | PathLike[str]) -> Session:
        """The session that ``save`` wrote; reads nothing again.

        Raises ``FormatError`` if the file is damaged or was saved with another model or cache type,
        ``ContextFullError`` if it holds more than the model's context.
        """
        session = cls(model)
        cache, vocab_size = session._cache, model.config.vocab_size
        tokens, session.extra = read_session(path, model.file.fingerprint, vocab_size, cache)
        session._ids[: len(tokens)] = tokens
        session._length = len(tokens)
        return session

    def _answering(self) -> Session:
        return self

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        params: SamplingParams | None = None,
        logprobs: int | None = None,
        processors: Processor | Sequence[Processor] = (),
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **sampling: Any,
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
            progress=progress,
            cancelled=cancelled,
            **sampling,
        )
        ids = self.model.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise EdgeDBError("the prompt is empty; give at least one token")
        if len(ids) >= self.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it or load with a larger context"
            )
        self._check_ids(ids)
        return self._stream(ids, request, request.sampler(self.model), StopMatcher(request.stop))

    def _stream(
        self, ids: list[int], request: Request, sampler: Sampler, matcher: StopMatcher
    ) -> Iterator[Chunk]:
        detokenizer = self.model.tokenizer.stream(after=ids)
        end_ids = request.stop_ids.union(self.model.tokenizer_spec.eos_ids)
        stats = Stats(prompt_tokens=len(ids))
        room = self.context - len(ids)
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)

        with self._exclusive():
            self._hold(ids)
            stats.read_tokens = len(ids) - self._cache.length
            started = time.perf_counter()
            logits = self._read(request.progress, request.cancelled)
            stats.prompt_seconds = time.perf_counter() - started

            started = time.perf_counter()
            reason: FinishReason | None = "cancelled" if logits is None else None
            while reason is None:
                if sampler.finished:
                    reason = "stop"
                    break
                if request.cancelled is not None and request.cancelled():
                    reason = "cancelled"
                    break
                if stats.completion_tokens == max_tokens:
                    reason = "length"
                    break
                logits = self._last_logits()
                token = self._decode(sampler)
                if token in end_ids:
                    reason = "stop"
                    break
                chosen = self._logprobs(logits, token, request.logprobs)
                stats.completion_tokens += 1
                text = matcher.push(detokenizer.push(token))
                stats.decode_seconds = time.perf_counter() - started
                if matcher.stopped:
                    yield Chunk(text, token, "stop", replace(stats), chosen)
                    return
                yield Chunk(text, token, None, replace(stats), chosen)
            tail = matcher.push(detokenizer.finish()) + matcher.finish()
            stats.decode_seconds = time.perf_counter() - started
            yield Chunk(tail, None, reason, replace(stats))

    def _decode(self, sampler: Sampler) -> int:
        token = sampler.sample(self._last_logits(), self._held)
        self._append([token])
        return token

    def _logprobs(self, logits: np.ndarray, token: int, n: int | None) -> TokenLogprobs | None:
        if n is None:
            return None
        return token_logprobs(logits, token, n, self.model.ops, self.model.tokenizer)

    def _hold(self, ids: list[int]) -> None:
        """Make ``ids`` the sequence, and leave something to read unless the logits are there."""
        common = _common_prefix(self._held, ids)
        if not (common == len(ids) == self._length and self._logits is not None):
            self._rewind(min(common, len(ids) - 1))
        self._append(ids[self._length :])

    @property
    def _held(self) -> np.ndarray:
        """The sequence as a view, int32 ``(position,)``."""
        return self._ids[: self._length]

    def _append(self, ids: Sequence[int]) -> None:
        end = self._length + len(ids)
        if end > self.context:
            raise ContextFullError(f"{end} tokens do not fit into a context of {self.context}")
        self._check_ids(ids)
        if len(ids):
            self._ids[self._length : end] = ids
            self._length = end
            self._logits = None

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab_size = self.model.config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise EdgeDBError(f"token id {wrong} is not in the vocabulary of {vocab_size}")

    def _read(
        self, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None
    ) -> np.ndarray | None:
        """Bring the cache up to the last token; its logits, or None after a cancel."""
        if self._logits is None and self._cache.length == self._length:
            self._cache.truncate(self._length - 1)  # rewound: logits come from reading again
        start, end = self._cache.length, self._length
        while self._cache.length < end:
            if cancelled is not None and cancelled():
                self._rewind(self._cache.length)
                return None
            at = self._cache.length
            # How the tokens are cut into batches changes no bit of the result.
            n = min(end - at, MAX_BATCH if cancelled is None else self._pace.batch)
            started = time.perf_counter()
            self._logits = self.model.llama.forward(
                self._ids[at : at + n].tolist(),
                self._cache,
                self._state,
                logits="last" if at + n == end else None,
            )
            self._pace.measured(n, time.perf_counter() - started)
            if progress is not None:
                progress(self._cache.length - start, end - start)
        return self._logits

    def _last_logits(self) -> np.ndarray:
        if not self._length:
            raise EdgeDBError("the session is empty; prefill at least one token first")
        logits = self._read()
        assert logits is not None, "only a cancelled read has no logits"
        return logits

    def _rewind(self, position: int) -> None:
        if position < self._length:
            self._length = position
            self._cache.truncate(position)
            self._logits = None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("this session is answering already; use a second session")
        try:
            yield
        finally:
            self._lock.release()


def _common_prefix(held: np.ndarray, ids: Sequence[int]) -> int:
    n = min(len(held), len(ids))
    different = np.flatnonzero(held[:n] != np.asarray(ids[:n], np.int64))
    return int(different[0]) if len(different) else n
