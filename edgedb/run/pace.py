"""How many rows a pass may have whose readers may want to interrupt it."""

from __future__ import annotations

from .schedule import STALE, Times

# Such a pass takes so long at most. Where weights take as long to read, rows beside the first are
# nearly free, and it may take twice as long as that one, as far as is inside 100 ms.
TARGET_SECONDS, _MOST_SECONDS = 0.04, 0.09
# A second row is tried where the first takes no more than this of what a pass may.
_EASY = 0.75
# A prompt begins with so many rows at most, and grows so fast: what earlier passes took says
# nothing of a machine that others have begun to use since.
_BEGIN, _GROWTH = 16, 4


class Pace:
    """The rows of one reader's passes."""

    def __init__(self, times: Times, most: int) -> None:
        """``times`` of all passes of its model."""
        self._times, self._most = times, most
        self._bound = min(_BEGIN, most)

    @property
    def batch(self) -> int:
        """Tokens to read next, 1 to ``most``."""
        return rows_within(self._times, self._bound)

    def measured(self, rows: int, seconds: float) -> None:
        """A pass of ``rows`` took so long."""
        if seconds > _MOST_SECONDS and rows > 1:
            self._bound = max(1, int(rows * TARGET_SECONDS / seconds))
        else:
            alike = int(rows * _MOST_SECONDS / max(seconds, 1e-6))  # if rows cost alike
            self._bound = min(self._most, _GROWTH * self._bound, max(alike, rows + 1))


def rows_within(times: Times, most: int) -> int:
    """Rows of the next pass, 1 to ``most``, by what earlier ones took.

    It begins with one, because a large model on a slow CPU may need a second for ten. A single row
    cannot be interrupted.
    """
    known = times.largest
    if not known:
        return 1
    first = times.expected(1)
    limit = max(TARGET_SECONDS, min(_MOST_SECONDS, 2 * first))
    if known == 1:
        return min(most, 2) if first <= _EASY * limit else 1
    last = times.expected(known)
    more = max(0.0, last - first) / (known - 1)  # of a row, as far as is known

    def takes(n: int) -> float:
        return times.expected(n) if n <= known else last + more * (n - known)

    found = next((n for n in range(min(most, 2 * known), 1, -1) if takes(n) <= limit), 1)
    above = times.above(found)
    if above is not None and times.age(above) >= STALE:
        return min(above, 2 * found, most)
    return found
