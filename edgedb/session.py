"""A sequence of tokens: read a prompt, write an answer.

Each ``Session`` owns a cache and is used by one thread at a time. Everything that makes text goes
through ``Session.stream``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import BusyError, ContextFullError, EdgeDBError
from .kvcache import KVCache
from .llama import MAX_BATCH, RunState
from .sampling import Sampler, SamplingParams
from .stopping import StopMatcher

if TYPE_CHECKING:
    from .engine import Model

FinishReason = Literal["stop", "length", "cancelled"]
Progress = Callable[[int, int], None]  # tokens read, tokens to read


@dataclass
class Stats:
    """How much was read and written, and how long it took."""

    prompt_tokens: int = 0  # tokens of the prompt
    read_tokens: int = 0  # of these, the ones that the cache did not hold yet
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens a second, of those that were read now."""
        return self.read_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_per_second(self) -> float:
        """Decoded tokens a second."""
        return self.completion_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Chunk:
    """One step of a streamed answer.

    ``text`` may be empty: a token can end inside a character, or text can be held back because it
    may turn out to be a stop string. The last chunk alone has a ``finish_reason``.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None
    stats: Stats


@dataclass(frozen=True)
class Completion:
    """A whole answer; ``tokens`` are its ids, without the one that ended it."""

    text: str
    tokens: list[int] = field(repr=False)
    finish_reason: FinishReason
    stats: Stats


class Session:
    """A sequence of tokens and the cache of what the model made of them.

    Use it from one thread at a time: a second one gets ``BusyError``.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._cache = KVCache(model.config, model.ops, model.context, model.kv_dtype)
        self._state = RunState(model.config, model.ops)
        self._tokens: list[int] = []  # the first cache.length of them are in the cache
        self._logits: np.ndarray | None = None  # after the last token; None until it is read
        self._lock = threading.Lock()

    @property
    def tokens(self) -> list[int]:
        """Ids of the whole sequence, a copy."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """Number of tokens in the sequence."""
        return len(self._tokens)

    @property
    def context(self) -> int:
        """Number of tokens the session can hold."""
        return self._cache.capacity

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
            if self._tokens:
                self._read(progress, cancelled)

    def decode(self, sampler: Sampler | None = None) -> int:
        """Choose the next token (greedily without a sampler), append it and return it."""
        with self._exclusive():
            return self._decode(sampler or Sampler(SamplingParams(temperature=0)))

    def logits(self) -> np.ndarray:
        """Logits after the last token, float32 ``(vocab,)``, a copy."""
        with self._exclusive():
            return self._last_logits().copy()

    def logits_of(self, ids: Sequence[int]) -> np.ndarray:
        """Append ``ids``; logits after each of them, float32 ``(len(ids), vocab_size)``."""
        with self._exclusive():
            if self._cache.length < len(self._tokens):
                self._read()
            self._append(ids)
            out = np.empty((len(ids), self.model.config.vocab_size), np.float32)
            for start in range(0, len(ids), MAX_BATCH):
                batch = ids[start : start + MAX_BATCH]
                out[start : start + len(batch)] = self.model.llama.forward(
                    batch, self._cache, self._state, logits="all"
                )
            self._logits = out[-1] if len(ids) else self._logits
            return out

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        with self._exclusive():
            if not 0 <= position <= len(self._tokens):
                raise EdgeDBError(
                    f"cannot rewind to {position}: the session holds {len(self._tokens)} tokens"
                )
            self._rewind(position)

    def stream(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        params: SamplingParams | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """Make the session hold exactly ``ids``, then answer them.

        What ``ids`` and the session have in common at their beginning is not read again.
        ``max_tokens`` bounds the answer (default: the rest of the context), ``stop`` ends it where
        one of the strings appears, ``sampling`` are fields of ``SamplingParams``. ``cancelled`` is
        asked between tokens; the answer so far stays in the session.
        Raises ``ContextFullError`` before anything is read if the prompt does not fit.
        """
        sampler = Sampler(replace(params or SamplingParams(), **sampling))
        matcher = StopMatcher([stop] if isinstance(stop, str) else list(stop))
        if not ids:
            raise EdgeDBError("the prompt is empty; give at least one token")
        if max_tokens is not None and max_tokens < 0:
            raise EdgeDBError(f"max_tokens = {max_tokens}: expected 0 or more")
        if len(ids) >= self.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it or load with a larger context"
            )
        self._check_ids(ids)
        return self._stream(list(ids), max_tokens, sampler, matcher, progress, cancelled)

    def _stream(
        self,
        ids: list[int],
        max_tokens: int | None,
        sampler: Sampler,
        matcher: StopMatcher,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[Chunk]:
        detokenizer = self.model.tokenizer.stream(after=ids)
        eos_ids = frozenset(self.model.tokenizer_spec.eos_ids)
        stats = Stats(prompt_tokens=len(ids))
        room = self.context - len(ids)
        max_tokens = room if max_tokens is None else min(max_tokens, room)

        with self._exclusive():
            # At least one token is read again: its logits are what the answer starts from.
            self._rewind(min(_common_prefix(self._tokens, ids), len(ids) - 1))
            stats.read_tokens = len(ids) - self._cache.length
            self._append(ids[len(self._tokens) :])
            started = time.perf_counter()
            logits = self._read(progress, cancelled)
            stats.prompt_seconds = time.perf_counter() - started

            started = time.perf_counter()
            reason: FinishReason | None = "cancelled" if logits is None else None
            while reason is None:
                if cancelled is not None and cancelled():
                    reason = "cancelled"
                    break
                if stats.completion_tokens == max_tokens:
                    reason = "length"
                    break
                token = self._decode(sampler)
                if token in eos_ids:
                    reason = "stop"
                    break
                stats.completion_tokens += 1
                text = matcher.push(detokenizer.push(token))
                stats.decode_seconds = time.perf_counter() - started
                if matcher.stopped:
                    yield Chunk(text, token, "stop", replace(stats))
                    return
                yield Chunk(text, token, None, replace(stats))
            tail = matcher.push(detokenizer.finish()) + matcher.finish()
            stats.decode_seconds = time.perf_counter() - started
            yield Chunk(tail, None, reason, replace(stats))

    def _decode(self, sampler: Sampler) -> int:
        token = sampler.sample(self._last_logits(), self._tokens)
        self._append([token])
        return token

    def _append(self, ids: Sequence[int]) -> None:
        if len(self._tokens) + len(ids) > self.context:
            raise ContextFullError(
                f"{len(self._tokens) + len(ids)} tokens do not fit into a context of {self.context}"
            )
        self._check_ids(ids)
        if ids:
            self._tokens.extend(ids)
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
        if self._logits is None and self._cache.length == len(self._tokens):
            self._cache.truncate(len(self._tokens) - 1)  # rewound: logits come from reading again
        start, end = self._cache.length, len(self._tokens)
        while self._cache.length < end:
            if cancelled is not None and cancelled():
                self._rewind(self._cache.length)
                return None
            batch = self._tokens[self._cache.length : self._cache.length + MAX_BATCH]
            last = self._cache.length + len(batch) == end
            self._logits = self.model.llama.forward(
                batch, self._cache, self._state, logits="last" if last else None
            )
            if progress is not None:
                progress(self._cache.length - start, end - start)
        return self._logits

    def _last_logits(self) -> np.ndarray:
        if not self._tokens:
            raise EdgeDBError("the session is empty; prefill at least one token first")
        logits = self._read()
        assert logits is not None, "only a cancelled read has no logits"
        return logits

    def _rewind(self, position: int) -> None:
        if position < len(self._tokens):
            del self._tokens[position:]
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


def collect(chunks: Iterable[Chunk]) -> Completion:
    """Run a stream to its end."""
    text: list[str] = []
    tokens: list[int] = []
    last: Chunk | None = None
    for last in chunks:
        text.append(last.text)
        if last.token is not None:
            tokens.append(last.token)
    assert last is not None and last.finish_reason is not None, "a stream ends with a finish reason"
    return Completion("".join(text), tokens, last.finish_reason, last.stats)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
