"""Guess the next tokens and check them in one pass.

Guesses are read together with the newest token; every position's logits are those of reading one by
one, bit for bit with the native backend, so sampling takes the same tokens, and guesses end at the
first one that was not taken.

Where guesses come from is a ``Guesser``. Prompt lookup needs no second model: a summary, an edit or
code repeats much of what it was made from, and where the last tokens occurred before, what followed
them then is the guess. A draft model is another one (``draft.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ..ops.selection import Floats, Ids

DEFAULT_LOOKUP = 0  # tokens guessed at once unless a request says otherwise
_NGRAMS = (3, 2)  # tokens at the end that must have occurred before
_FIRST_GUESS = 4
_LONGEST_PAUSE = 32  # tokens


class Beside(NamedTuple):
    """What the last pass read beside a sequence."""

    rows: int
    sequences: int


ALONE = Beside(0, 0)


class Guesser(Protocol):
    """Guesses for one answer, as many as pay."""

    @property
    def drafted(self) -> int:
        """Guesses that were read."""

    @property
    def accepted(self) -> int:
        """Of these, the ones that were right."""

    def draft(self, ids: Ids, room: int, beside: Beside = ALONE) -> list[int]:
        """Up to ``room`` guesses of what follows ``ids`` int32 ``(n,)``; often none."""

    def measured(self, n_guesses: int, seconds: float) -> None:
        """A pass has read a token and the first ``n_guesses`` of the last guesses."""

    def hit(self) -> None:
        """One more of them was right."""


class FirstOf:
    """Guesses of the first of several guessers that has any."""

    def __init__(self, guessers: Sequence[Guesser]) -> None:
        self._guessers = guessers
        self._chosen: Guesser | None = None  # who made the last guesses

    @property
    def drafted(self) -> int:
        return sum(one.drafted for one in self._guessers)

    @property
    def accepted(self) -> int:
        return sum(one.accepted for one in self._guessers)

    def draft(self, ids: Ids, room: int, beside: Beside = ALONE) -> list[int]:
        """Up to ``room`` guesses of what follows ``ids``."""
        self._chosen = None
        for one in self._guessers:
            if guesses := one.draft(ids, room, beside):
                self._chosen = one
                return guesses
        return []

    def measured(self, n_guesses: int, seconds: float) -> None:
        """Who guessed is told, or all if nobody did."""
        for one in self._guessers if self._chosen is None else (self._chosen,):
            one.measured(n_guesses, seconds)

    def hit(self) -> None:
        """One more of the last guesses was right."""
        if self._chosen is not None:
            self._chosen.hit()


class Lookup:
    """Guesses from earlier text, as long as they save time, measured: none where they are rarely
    right."""

    def __init__(self, most: int) -> None:
        """``most``: tokens guessed at once, at least 1."""
        self.drafted = self.accepted = 0
        self._most = most
        self._size = min(most, _FIRST_GUESS)
        self._single = 0.0  # seconds that one token takes
        self._hits = 0
        self._unsettled: tuple[int, float] | None = None  # guesses under way, and their seconds
        self._wait, self._pause = 0, 1

    def draft(self, ids: Ids, room: int, beside: Beside = ALONE) -> list[int]:
        """Up to ``room`` guesses of what follows ``ids`` int32 ``(n,)``; often none."""
        self._settle()
        if self._wait:
            self._wait -= 1
            return []
        return find_continuation(ids, min(self._size, room)) if room > 0 else []

    def measured(self, n_guesses: int, seconds: float) -> None:
        """Reading one token and ``n_guesses`` more took so long."""
        if n_guesses:
            self.drafted += n_guesses
            self._hits, self._unsettled = 0, (n_guesses, seconds)
        else:
            self._single += (seconds - self._single) * (0.2 if self._single else 1.0)

    def hit(self) -> None:
        """One more guess was right."""
        self.accepted += 1
        self._hits += 1

    def _settle(self) -> None:
        """Learn from the last guesses how many to make, or to pause."""
        if self._unsettled is None:
            return
        (n_guesses, seconds), self._unsettled = self._unsettled, None
        self._size = 2 * n_guesses if self._hits == n_guesses else max(2, self._hits + 1)
        self._size = min(self._size, self._most)
        if (self._hits + 1) * self._single < seconds:
            self._wait = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._pause = 1


def find_continuation(ids: Ids, size: int) -> list[int]:
    """Up to ``size`` tokens that followed the latest earlier place that ends like ``ids``."""
    last = len(ids) - 1
    for ngram in _NGRAMS:
        if last < ngram:
            continue
        ends = np.flatnonzero(ids[:last] == ids[last])
        for back in range(1, ngram):
            ends = ends[ends >= back]
            ends = ends[ids[ends - back] == ids[last - back]]
        if len(ends):
            found: list[int] = ids[ends[-1] + 1 : ends[-1] + 1 + size].tolist()
            return found
    return []


class Ahead:
    """Logits of positions whose tokens are guesses; the cache holds what they were read to."""

    def __init__(self, guesses: list[int], logits: Floats) -> None:
        """``logits`` float32 ``(len(guesses), vocab)``: after each guess."""
        self._guesses = guesses
        self._logits = logits
        self._next = 0

    def take(self, token: int) -> Floats | None:
        """Logits after ``token`` if it is the next guess; otherwise nothing here is of use."""
        if self._next == len(self._guesses) or self._guesses[self._next] != token:
            return None
        self._next += 1
        row: Floats = self._logits[self._next - 1]
        return row
