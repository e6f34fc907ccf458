"""What a session has read: its tokens, the cache, the logits after the last token."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..choose.sampling import Sampler
from ..errors import EdgeDBError
from ..model.head import Needed
from ..model.network import Wanted
from ..ops.pages import PAGE
from ..ops.selection import Floats, Ids
from ..ops.sequences import MAX_ROWS
from .cached_tokens import CachedTokens
from .draft import DEFAULT_DRAFT, Draft, Drafter
from .loaded import LoadedModel
from .loop import Turn
from .pace import Pace
from .request import Progress
from .speculative import ALONE, DEFAULT_LOOKUP, Ahead, Beside, FirstOf, Guesser, Lookup


class Choice(NamedTuple):
    """How the tokens of an answer are chosen, where whoever computes may do it."""

    sampler: Sampler
    end_ids: Container[int]  # behind which nothing is read
    wanted: Callable[[Ids], Needed | None]  # of the logits after such ids
    write: Callable[[int], bool] | None = None  # takes a token that has others behind it, if it may
    flush: Callable[[], None] | None = None  # behind those of a pass


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
        self._choice: Choice | None = None
        self._chosen: int | None = None  # what was chosen after the last token already
        self._next: Turn | None = None  # which reads that, and is handed in
        model.admission.register(self)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory once the context is full, of a draft's too where one has guessed."""
        draft = 0 if self._draft is None else self._draft.size_bytes
        return super().size_bytes + draft

    def settle(self) -> None:
        """Forget what an earlier use had begun; the tokens stay."""
        self._choice = None  # so that nothing follows
        super().settle()
        self._guesser = self._ahead = self._chosen = self._next = None
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
        if self._chosen is not None:  # and the logits that it was chosen from are gone
            return self._logits
        if self._next is not None:
            return self._read_next()
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
                follow=self._follow if self._choice is not None and at + n == end else None,
                goes_on=at == end - 1 and self._is_written,
            )
            if turn.is_withdrawn:
                continue
            self._got(turn)
            self._pace.measured(turn.rows, turn.seconds)
            if progress is not None:
                progress(min(self.cache.length, end) - start, end - start)
        if end - start > 1 or end % PAGE == 0:
            self.offer()
        return self._logits

    @contextmanager
    def choosing(self, choice: Choice) -> Iterator[None]:
        """Let whoever computes make a ``choice`` for this one, so that its next token goes into the
        next pass at once; ``chosen`` then has it. Not where guesses are to be made."""
        self._choice = choice if self._guesser is None else None
        try:
            yield
        finally:
            turn, self._choice, self._next, self._chosen = self._next, None, None, None
            if turn is not None and not turn.is_done:
                self.model.loop.withdraw(turn)  # or it is read for nothing, and settle waits for it

    def chosen(self) -> int | None:
        """The token after the last one, if it was chosen already."""
        token, self._chosen = self._chosen, None
        return token

    def _follow(self, turn: Turn) -> Turn | None:
        """Choose a token from what ``turn`` got, and make the turn that reads it, unless it is the
        last one. In the thread that computes, while the owner waits."""
        choice, length = self._choice, self.length
        if choice is None or turn.result is None:
            return None
        if self._chosen is None:  # else who computed was interrupted, and it is done again
            self._chosen = choice.sampler.sample(turn.result, self.ids)
        token = self._chosen
        if token in choice.end_ids or length + 1 >= self._end:
            return None
        wanted: Wanted = choice.wanted(self._with(token)) or "last"
        if turn.is_stream and choice.write is not None and choice.write(token):
            self._chosen = None
            self.append([token])
            if length % PAGE == 0:
                self.offer()
            turn.flush = choice.flush
            return turn.go_on([token], wanted)
        self._next = Turn(
            self.cache,
            [token],
            wanted,
            self._place,
            is_stream=True,
            most=MAX_ROWS,
            out=self._out,
            follow=self._follow,
            goes_on=self._is_written,
            thread=turn.thread,
        )
        self._turn = weakref.ref(self._next)
        return self._next

    @property
    def _is_written(self) -> bool:
        """Whether tokens are taken where they are chosen."""
        return self._choice is not None and self._choice.write is not None

    def _with(self, token: int) -> Ids:
        """The sequence and ``token`` behind it, a view."""
        self._ids[self.length] = token
        return self._ids[: self.length + 1]

    def _read_next(self) -> Floats | None:
        """Logits of the turn that was handed in for this one."""
        turn, self._next = self._next, None
        assert turn is not None, "it is there"
        self.model.loop.run(turn)
        self._got(turn)
        if self.length % PAGE == 0:
            self.offer()
        return self._logits

    def _got(self, turn: Turn) -> None:
        """Note what came of it."""
        self._logits = turn.result
        self._partial = turn.wanted if isinstance(turn.wanted, Needed) else None
        self._beside = Beside(turn.others, turn.others)  # who writes has a row in the next pass

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
