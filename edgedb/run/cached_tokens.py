"""A sequence of tokens and the cache of those that a model has read, for the loop to read more of.

Ctrl-C may come between any two lines: each leaves what the next use can go on from, after
``settle``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ContextFullError
from ..model.network import Wanted
from ..ops.selection import Ids
from ..ops.sequences import MAX_ROWS
from .loaded import LoadedModel
from .loop import Turn
from .schedule import Place


def _none() -> None:
    return None


class CachedTokens:
    """Tokens, of which the first ``cache.length`` are in the cache; for one thread at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.cache = model.network.cache(model.context, model.kv_dtype)
        self._out = model.ops.buffer((1, model.config.vocab_size))
        self._place = Place()
        self._turn: Callable[[], Turn | None] = _none  # handed in, and maybe still under way
        self._ids = np.zeros(model.context, np.int32)
        self.length = 0  # tokens in _ids

    @property
    def n_pages(self) -> int:
        """Pages of the cache."""
        return len(self.cache.table.pages)

    @property
    def ids(self) -> Ids:
        """The sequence as a view, int32 ``(length,)``."""
        return self._ids[: self.length]

    @property
    def size_bytes(self) -> int:
        """Bytes of memory once the context is full."""
        return self.cache.size_bytes + self._out.array.nbytes + self._ids.nbytes

    def settle(self) -> None:
        """Forget what an earlier use had begun; the tokens stay."""
        while (turn := self._turn()) is not None:  # which may be followed by another one
            if turn.is_done or self.model.loop.withdraw(turn):
                break
            turn.wait(0.001)
        self.cache.truncate(self.length)

    def append(self, ids: Sequence[int] | Ids) -> None:
        """Put ``ids``, tokens of the vocabulary, at the end.

        Raises ``ContextFullError`` if they do not fit.
        """
        end = self.length + len(ids)
        if end > self.cache.capacity:
            raise ContextFullError(
                f"{end} tokens do not fit into a context of {self.cache.capacity}"
            )
        if len(ids):
            self._ids[self.length : end] = ids
            self.length = end

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        if position < self.length:
            self.cache.truncate(position)
            self.length = position

    def common(self, ids: Sequence[int] | Ids) -> int:
        """How many tokens the sequence and ``ids`` begin with alike."""
        n = min(self.length, len(ids))
        different = np.flatnonzero(self._ids[:n] != np.asarray(ids[:n], np.int64))
        return int(different[0]) if len(different) else n

    def copy_from(self, other: CachedTokens) -> None:
        """Take over everything that ``other``, of the same model, has read."""
        self._ids[: other.length] = other.ids
        self.length = other.length
        self.cache.copy_from(other.cache)

    def take_over(self, ids: Ids) -> None:
        """Hold what others have read of ``ids``, if it is more than what this one has."""
        if not self._shares:
            return
        pages, length = self.model.prefixes.find(ids)
        if length > self.cache.length:
            self.rewind(0)
            self._ids[:length] = ids[:length]
            self.length = length
            self.cache.adopt(pages, length)

    def offer(self) -> None:
        """Let others have what is in the cache."""
        if self._shares:
            n = min(self.cache.length, self.length)
            self.model.prefixes.add(self._ids[:n], self.cache)

    @property
    def _shares(self) -> bool:
        """Whether what others read is what this one would: of other backends bits differ."""
        return self.model.ops.name == "native"

    def run(
        self,
        tokens: Sequence[int],
        wanted: Wanted,
        *,
        most: int = MAX_ROWS,
        cancelled: Callable[[], bool] | None = None,
        is_stream: bool = False,
        n_guesses: int = 0,
        follow: Callable[[Turn], Turn | None] | None = None,
        goes_on: bool = False,
    ) -> Turn:
        """Have the loop read ``tokens``, or the first of them; or none, after a cancel."""
        turn = Turn(
            self.cache,
            tokens,
            wanted,
            self._place,
            is_stream=is_stream,
            n_guesses=n_guesses,
            most=most,
            out=self._out,
            follow=follow,
            goes_on=goes_on,
        )
        self._turn = weakref.ref(turn)
        self.model.loop.run(turn, cancelled)
        return turn
