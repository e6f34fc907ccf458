"""Who reads how much in the next pass: streams first, prompts share what is left, guesses get what
nobody else wants.

A pass takes longer the more rows it has. How long is measured, and prompts get so many rows that
no stream's token takes more than ``SLOWEST`` times as long as without them; where more prompts are
about to be read to their end than streams are written, as many times more as they are, for each of
them waits for a first token. Among prompts it goes round: each may read ``QUANTUM`` tokens before
the next one's turn comes (deficit round robin).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

from ..ops.sequences import MAX_ROWS

SLOWEST = 2.0  # times as long as without prompts
QUANTUM = 32  # tokens of a prompt, before another one's come
_FORGET = 0.3  # weight of a new measurement
_MOST = 2.0  # times as long as it took before: the rest is somebody else's
_LONG_AGO = 1 << 30  # passes
STALE = 256  # passes after which a measurement counts for nothing
_OLD = 32  # passes after which the streams' own time is measured again
_ALIKE = 8  # what is known of an eighth more or fewer rows, is known of some as well


class Place:
    """What the scheduler knows of a sequence from one of its turns to the next."""

    __slots__ = ("__weakref__", "deficit", "due", "last")

    def __init__(self) -> None:
        self.deficit = 0  # tokens that it may read before it is another one's turn
        self.last = 0  # when its turn came, counted over all turns
        self.due = 0.0  # when a stream that has guesses to make will be back, by perf_counter


class Waiting(Protocol):
    """Who waits to be read."""

    @property
    def tokens(self) -> Sequence[int]:
        """To be read next: of a stream all at once, of a prompt as many as fit."""

    @property
    def is_stream(self) -> bool: ...

    @property
    def n_guesses(self) -> int:
        """How many of a stream's tokens, at their end, are guesses and may be left out."""

    @property
    def most(self) -> int:
        """Rows that a pass may have with it, if it is a prompt: it wants to be asked in between."""

    @property
    def ends(self) -> bool:
        """Whether a prompt is read to its end by these tokens."""

    @property
    def place(self) -> Place: ...


class Times:
    """How long passes take, by their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._rows: list[int] = []  # its keys, ascending
        self._measured_at: dict[int, int] = {}
        self._passes = 0

    def measured(self, rows: int, seconds: float) -> None:
        """A pass of ``rows`` took so long."""
        if self.age(rows) >= STALE:
            # Nothing is known of it but what it takes at most, if one row is like the other.
            old = self.expected(rows) or seconds
            new = min(seconds, _MOST * old)
        else:
            old = self._seconds[rows]
            new = old + _FORGET * (min(seconds, _MOST * old) - old)
        if rows not in self._seconds:
            bisect.insort(self._rows, rows)
        self._seconds[rows] = new
        self._measured_at[rows] = self._passes
        self._passes += 1

    def expected(self, rows: int) -> float:
        """Seconds of a pass: between what was measured in a straight line, beyond as if every row
        took the same time. 0 before anything was measured."""
        known = self._seconds
        if rows in known or not known:
            return known.get(rows, 0.0)
        after = bisect.bisect(self._rows, rows)
        if after == 0:
            return known[self._rows[0]]
        below = self._rows[after - 1]
        if after == len(self._rows):
            return known[below] * rows / below
        above = self._rows[after]
        share = (rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])

    @property
    def largest(self) -> int:
        """The most rows that were measured; 0 before anything was."""
        return self._rows[-1] if self._rows else 0

    def above(self, rows: int) -> int | None:
        """The next larger number that was measured."""
        after = bisect.bisect(self._rows, rows)
        return self._rows[after] if after < len(self._rows) else None

    def age(self, rows: int) -> int:
        """Passes since one of ``rows`` was measured, or many where none was."""
        return self._passes - self._measured_at.get(rows, -_LONG_AGO)

    def room(self, streams: int, most: int, slowest: float = SLOWEST) -> int:
        """Rows, up to ``most``, that may come to those of ``streams``, so that a pass takes
        ``slowest`` times as long at most; 0 where the streams' own time is not known well enough:
        then it is measured first."""
        if not streams:
            return most
        about = streams // _ALIKE
        if min(map(self.age, range(streams - about, streams + about + 1))) >= _OLD:
            return 0
        limit = slowest * self.expected(streams)
        fitting = (n for n in range(most, 0, -1) if self.expected(streams + n) <= limit)
        return next(fitting, min(1, most))


class Schedule:
    """Plans one pass after the other."""

    def __init__(self) -> None:
        self.times = Times()
        self._turns = 0

    def plan(self, waiting: Sequence[Waiting]) -> list[tuple[int, int]]:
        """The next pass, at most ``MAX_ROWS``: which of ``waiting``, in order of arrival, and how
        many of their tokens. Empty only if nobody waits."""
        chosen: list[tuple[int, int]] = []
        rows = 0
        for i, one in enumerate(waiting):
            n = len(one.tokens) - one.n_guesses
            if one.is_stream and rows + n <= MAX_ROWS:
                chosen.append((i, n))
                rows += n
        prompts = [i for i, one in enumerate(waiting) if not one.is_stream]
        if prompts:
            most = min(MAX_ROWS - rows, *(waiting[i].most for i in prompts))
            ending = sum(waiting[i].ends for i in prompts)
            slowest = SLOWEST * max(1.0, ending / max(1, len(chosen)))
            chosen += self._share(waiting, prompts, self.times.room(rows, most, slowest))
        return self._add_guesses(waiting, chosen, rows)

    def _add_guesses(
        self, waiting: Sequence[Waiting], chosen: list[tuple[int, int]], streams: int
    ) -> list[tuple[int, int]]:
        """``chosen`` with as many guesses as there are rows to spare: all those of a stream that is
        alone; beside others what prompts have left of the time that they may take. First guesses
        come before second ones, which are right less often. ``streams``: rows without both."""
        left = {i: waiting[i].n_guesses for i, _ in chosen if waiting[i].n_guesses}
        if not left:
            return chosen
        rows = sum(n for _, n in chosen)
        room = MAX_ROWS - rows
        if len(chosen) > 1:
            room = self.times.room(streams, MAX_ROWS - streams) - (rows - streams)
        taken = dict(chosen)
        while room > 0 and left:
            for i in list(left)[:room]:
                taken[i] += 1
                room -= 1
                left[i] -= 1
                if not left[i]:
                    del left[i]
        return list(taken.items())

    def _share(
        self, waiting: Sequence[Waiting], prompts: list[int], room: int
    ) -> list[tuple[int, int]]:
        """``room`` rows among ``prompts``: who was interrupted in its turn goes on with it, then
        who has waited longest."""
        taken = dict.fromkeys(prompts, 0)
        queue = sorted(
            prompts, key=lambda i: (waiting[i].place.deficit <= 0, waiting[i].place.last)
        )
        while room > 0 and queue:
            i = queue.pop(0)
            place, left = waiting[i].place, len(waiting[i].tokens) - taken[i]
            if place.deficit <= 0:
                self._turns += 1
                place.deficit, place.last = QUANTUM, self._turns
            n = min(room, left, place.deficit)
            taken[i] += n
            place.deficit -= n
            room -= n
            if n == left:
                place.deficit = 0
            else:
                queue.append(i)
        return [(i, n) for i, n in taken.items() if n]
