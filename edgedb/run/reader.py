"""What a session has read: its tokens, the cache, the logits after the last token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..errors import EdgeDBError
from ..model.head import Needed
from ..ops.pages import PAGE
from ..ops.selection import Floats, Ids
from ..ops.sequences import MAX_ROWS
from .cached_tokens import CachedTokens
from .draft import DEFAULT_DRAFT, Draft, Drafter
from .loaded import LoadedModel
from .pace import Pace
from .request import Progress
from .speculative import ALONE, DEFAULT_LOOKUP, Ahead, Beside, FirstOf, Guesser, Lookup


class Reader(CachedTokens):
    """Tokens and what the model made of them, read when logits are wanted."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._logits: Floats | None = None  # after the last token; None until it is read
        self._partial: Needed | None = None  # what _logits are good for; None: for everything
        self._pace = Pace(model.loop.times, MAX_ROWS)
        self._guesser: Guesser | None = None  # while an answer is written with guesses
        self._end = 0  # of that answer at the latest: tokens of the sequence
        self._ahead: Ahead | None = None  # what the last guesses left to take
        self._beside: Beside = ALONE  # what was read with the last token
        self._draft: Draft | None = None  # what the draft model has read, once it is asked
        model.admission.register(self)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory once the context is full, of a draft's too where one has guessed."""
        draft = 0 if self._draft is None else self._draft.size_bytes
        return super().size_bytes + draft

    def settle(self) -> None:
        """Forget what an interrupted use had begun; the tokens stay."""
        super().settle()
        self._guesser = self._ahead = None
        if self._draft is not None:
            self._draft.settle()

    def append(self, ids: Sequence[int] | Ids) -> None:
        """Put ``ids``, tokens of the vocabulary, at the end.

        Raises ``ContextFullError`` if they do not fit.
        """
        if len(ids):
            self._logits = None
            super().append(ids)

    def rewind(self, position: int) -> None:
        """Forget every token from ``position`` on."""
        if position < self.length:
            self._logits = self._ahead = None
            super().rewind(position)

    def hold(self, ids: Sequence[int]) -> int:
        """Make ``ids`` the sequence, keep what is common, and return how many are to be read.

        At least one, because the answer starts from its logits, unless they are there.
        """
        common = self.common(ids)
        if not (common == len(ids) == self.length and self._logits is not None):
            self.rewind(min(common, len(ids) - 1))
            self.take_over(np.array(ids[:-1], np.int32))
        self.append(ids[self.length :])
        return self.length - self.cache.length

    def go_on_from(self, other: Reader) -> None:
        """Take over everything that ``other``, of the same model, has read."""
        self.copy_from(other)
        self._logits = None if other._logits is None else other._logits.copy()
        self._partial = other._partial
        if other._draft is not None:
            self._draft = other._draft.copy()

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
            turn = self.run(ids[start : start + MAX_ROWS], "all")
            out[start : start + turn.n] = turn.result
            start += turn.n
        if len(ids):
            self._logits, self._partial = out[-1].copy(), None
            self.offer()
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
            turn = self.run(
                self._ids[at : at + n].tolist(),
                (wanted or "last") if at + n == end else None,
                most=most,
                cancelled=cancelled,
                is_stream=at == end - 1,
            )
            if turn.is_withdrawn:
                continue
            self._logits, self._partial = turn.result, wanted
            self._beside = Beside(turn.others, turn.others)  # who writes has a row in the next pass
            self._pace.measured(turn.rows, turn.seconds)
            if progress is not None:
                progress(self.cache.length - start, end - start)
        if end - start > 1 or self.cache.length % PAGE == 0:
            self.offer()
        return self._logits

    def use_draft(self, draft: Draft) -> None:
        """Have ``draft`` guess, and not a new one of the model's."""
        self._draft = draft

    @contextmanager
    def guessing(
        self,
        end: int,
        lookup: int | None,
        draft: int | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[Guesser | None]:
        """Let ``read`` look ahead while the sequence grows to ``end`` tokens at most: up to
        ``lookup`` tokens from earlier text, or ``draft`` of what the draft model would write. None
        is the default of each.

        A draft model has to read the sequence as well; ``cancelled`` ends that.
        """
        lookup = DEFAULT_LOOKUP if lookup is None else lookup
        draft = DEFAULT_DRAFT if draft is None else draft
        guessers: list[Guesser] = [Lookup(lookup)] if lookup else []
        if draft and self._draft is None and self.model.draft is not None:
            self._draft = Draft(self.model.draft, self.model.vocab_size)
        if draft and self._draft is not None:
            times = self.model.loop.times
            guessers.append(Drafter(self._draft, draft, times, self._place, cancelled))
        self._guesser = FirstOf(guessers) if len(guessers) > 1 else next(iter(guessers), None)
        self._end, self._beside = end, ALONE
        try:
            yield self._guesser
        finally:
            self._guesser = self._ahead = None
            self.model.loop.leave(self._place)
            self.offer()

    def _read_with_guesses(self, wanted: Needed | None) -> bool:
        """Read the last token and, in the same pass, guesses of those behind it."""
        if self._guesser is None:
            return False
        at = self.cache.length
        room = min(MAX_ROWS - 1, self._end - self.length - 1)
        guesses = self._guesser.draft(self.ids, room, self._beside)
        batch = [int(self._ids[at]), *guesses]
        turn = self.run(
            batch,
            "all" if guesses else wanted or "last",
            is_stream=True,
            n_guesses=len(guesses),
        )
        logits = turn.result
        assert logits is not None, "they were asked for"
        self._beside = Beside(turn.rows - turn.n, turn.others)
        self._guesser.measured(turn.n - 1, turn.seconds)
        if guesses:
            self.cache.truncate(at + 1)  # what follows stays in its place until it is taken
            self._ahead = Ahead(guesses[: turn.n - 1], logits[1:])
            logits = logits[0]
        self._logits, self._partial = logits, None if guesses else wanted
        return True

    def _take_guess(self) -> bool:
        """Whether the last token was read as a guess already; then it is no guess any more."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or self._guesser is None:
            return False
        logits = ahead.take(int(self._ids[self.length - 1]))
        if logits is None:
            return False
        self._guesser.hit()
        self.cache.length += 1
        self._logits, self._ahead, self._partial = logits, ahead, None
        return True
