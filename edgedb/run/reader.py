"""What a session has read: its tokens, the cache, the logits after the last token."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..errors import ContextFullError, EdgeDBError
from ..model.head import Needed
from ..model.network import Wanted
from ..ops.pages import PAGE
from ..ops.selection import Floats, Ids
from ..ops.sequences import MAX_ROWS
from .loaded import LoadedModel
from .loop import Turn
from .pace import Pace
from .request import Progress
from .schedule import Place
from .speculative import DEFAULT_LOOKUP, Ahead, Lookup


def _none() -> None:
    return None


class Reader:
    """Tokens and what the model made of them. Used by one thread at a time.

    The first ``cache.length`` ids are in the cache; the rest is read when logits are wanted. Ctrl-C
    may come between any two lines: each leaves what the next use can go on from, after ``settle``.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.cache = model.network.cache(model.context, model.kv_dtype)
        self._out = model.ops.buffer((1, model.config.vocab_size))
        self._place = Place()
        self._turn: Callable[[], Turn | None] = _none  # handed in, and maybe still under way
        self._ids = np.zeros(model.context, np.int32)
        self.length = 0  # tokens in _ids
        self._logits: Floats | None = None  # after the last token; None until it is read
        self._partial: Needed | None = None  # what _logits are good for; None: for everything
        self._pace = Pace(MAX_ROWS)
        self._lookup: Lookup | None = None  # while an answer is written with guesses
        self._ahead: Ahead | None = None  # what the last guesses left to take
        model.admission.register(self)

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
        """Forget what an interrupted use had begun; the tokens stay."""
        turn = self._turn()
        while turn is not None and not turn.is_done and not self.model.loop.withdraw(turn):
            turn.wait(0.001)
        self.cache.truncate(self.length)
        self._lookup = self._ahead = None

    def append(self, ids: Sequence[int]) -> None:
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
            self._logits, self.length = None, end

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        if position < self.length:
            self._logits = self._ahead = None
            self.cache.truncate(position)
            self.length = position

    def hold(self, ids: Sequence[int]) -> int:
        """Make ``ids`` the sequence, keep what is common, and return how many are to be read.

        At least one, because the answer starts from its logits, unless they are there.
        """
        n = min(self.length, len(ids))
        different = np.flatnonzero(self._ids[:n] != np.asarray(ids[:n], np.int64))
        common = int(different[0]) if len(different) else n
        if not (common == len(ids) == self.length and self._logits is not None):
            self.rewind(min(common, len(ids) - 1))
            self._take_over(np.array(ids[:-1], np.int32))
        self.append(ids[self.length :])
        return self.length - self.cache.length

    def _take_over(self, ids: Ids) -> None:
        """Hold what others have read of ``ids``, if it is more than what this one has."""
        if not self._shares:
            return
        pages, length = self.model.prefixes.find(ids)
        if length > self.cache.length:
            self.rewind(0)
            self._ids[:length] = ids[:length]
            self.length = length
            self.cache.adopt(pages, length)

    def _offer(self) -> None:
        """Let others have what is in the cache."""
        if self._shares:
            n = min(self.cache.length, self.length)
            self.model.prefixes.add(self._ids[:n], self.cache)

    @property
    def _shares(self) -> bool:
        """Whether what others read is what this one would: of other backends bits differ."""
        return self.model.ops.name == "native"

    def copy_from(self, other: Reader) -> None:
        """Take over everything that ``other``, of the same model, has read."""
        self._ids[: other.length] = other.ids
        self.length = other.length
        self.cache.copy_from(other.cache)
        self._logits = None if other._logits is None else other._logits.copy()
        self._partial = other._partial

    def logits(self, wanted: Needed | None = None) -> Floats:
        """After the last token, float32 ``(vocab,)``; the next reading overwrites it.

        With ``wanted``, those that do not matter for it may be -inf.
        """
        if not self.length:
            raise EdgeDBError("the session is empty; prefill at least one token first")
        logits = self.read(wanted=wanted)
        assert logits is not None, "only a cancelled read has no logits"
        return logits

    def logits_of(self, ids: Sequence[int]) -> Floats:
        """Append ``ids``; logits after each of them, float32 ``(len(ids), vocab)``."""
        if self.cache.length < self.length:
            self.read()
        self.append(ids)
        out = np.empty((len(ids), self.model.config.vocab_size), np.float32)
        start = 0
        while start < len(ids):
            turn = self._run(ids[start : start + MAX_ROWS], "all")
            out[start : start + turn.n] = turn.result
            start += turn.n
        if len(ids):
            self._logits, self._partial = out[-1].copy(), None
        return out

    def read(
        self,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        wanted: Needed | None = None,
    ) -> Floats | None:
        """Bring the cache up to the last token; its ``logits``, or None after a cancel.

        After a cancel the sequence ends with the last token that was read.
        """
        if self._partial not in (None, wanted):
            self._logits = None
        if self._logits is None and self.cache.length == self.length:
            self.cache.truncate(self.length - 1)  # rewound: logits come from reading again
        start, end = self.cache.length, self.length
        while self.cache.length < end:
            if cancelled is not None and cancelled():
                self.rewind(self.cache.length)
                return None
            at = self.cache.length
            if at == end - 1 and (self._take_guess() or self._read_with_guesses(wanted)):
                break
            # How the tokens are cut into batches changes no bit of the result.
            most = MAX_ROWS if cancelled is None else self._pace.batch
            n = min(end - at, most)
            turn = self._run(
                self._ids[at : at + n].tolist(),
                (wanted or "last") if at + n == end else None,
                most=most,
                cancelled=cancelled,
                is_stream=at == end - 1,
            )
            if turn.is_withdrawn:
                continue
            self._logits, self._partial = turn.result, wanted
            self._pace.measured(turn.rows, turn.seconds)
            if progress is not None:
                progress(self.cache.length - start, end - start)
        if end - start > 1 or self.cache.length % PAGE == 0:
            self._offer()
        return self._logits

    def _run(
        self,
        tokens: Sequence[int],
        wanted: Wanted,
        *,
        most: int = MAX_ROWS,
        cancelled: Callable[[], bool] | None = None,
        is_stream: bool = False,
    ) -> Turn:
        """Have the loop read ``tokens``, or the first of them; or none, after a cancel."""
        turn = Turn(
            self.cache,
            tokens,
            wanted,
            self._place,
            is_stream=is_stream,
            most=most,
            out=self._out,
        )
        self._turn = weakref.ref(turn)
        self.model.loop.run(turn, cancelled)
        return turn

    @contextmanager
    def guessing(self, most: int | None) -> Iterator[Lookup | None]:
        """Let ``read`` look up to ``most`` tokens ahead; None is the default of the backend."""
        if most is None:
            most = DEFAULT_LOOKUP if self.model.ops.name == "native" else 0
        self._lookup = Lookup(most) if most else None
        try:
            yield self._lookup
        finally:
            self._lookup = self._ahead = None
            self.model.loop.leave(self._place)
            self._offer()

    def _read_with_guesses(self, wanted: Needed | None) -> bool:
        """Read the last token and, in the same pass, guesses of those behind it."""
        if self._lookup is None:
            return False
        at = self.cache.length
        room = min(MAX_ROWS - 1, self.cache.capacity - self.length)
        guesses = self._lookup.draft(self.ids, room)
        batch = [int(self._ids[at]), *guesses]
        turn = self._run(batch, "all" if guesses else wanted or "last", is_stream=True)
        logits = turn.result
        assert logits is not None, "they were asked for"
        self._lookup.measured(len(guesses), turn.seconds)
        if guesses:
            self.cache.truncate(at + 1)  # what follows stays in its place until it is taken
            self._ahead = Ahead(guesses, logits[1:])
            logits = logits[0]
        self._logits, self._partial = logits, None if guesses else wanted
        return True

    def _take_guess(self) -> bool:
        """Whether the last token was read as a guess already; then it is no guess any more."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or self._lookup is None:
            return False
        logits = ahead.take(int(self._ids[self.length - 1]))
        if logits is None:
            return False
        self._lookup.hit()
        self.cache.length += 1
        self._logits, self._ahead, self._partial = logits, ahead, None
        return True
