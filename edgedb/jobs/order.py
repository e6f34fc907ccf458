"""In which order lines are answered: the longest first, and together those that begin alike.

A long answer that begins last keeps one stream busy while all others have nothing to do. A prompt
whose beginning was just read costs only its end, as long as that beginning is still kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock

from ..gate import gate
from .lines import Line

ALIKE = 256  # characters that two prompts must share to be read one after the other
_LOOK_SECONDS = 0.04  # how often who waits looks whether it was cancelled
_REMEMBERED = 64  # prompts read last


def in_order(lines: Sequence[Line]) -> list[Line]:
    """``lines`` as they are to be answered."""
    begun = sorted(((line.beginning, line) for line in lines), key=lambda pair: pair[0])
    return [line for _, line in _arrange(begun, ALIKE)]


def _arrange(lines: list[tuple[str, Line]], alike: int) -> list[tuple[str, Line]]:
    """Runs that share ``alike`` characters, the one with the longest line first, and within a run
    the same again by twice as many: a system prompt is shared by all, a document by a few."""
    runs: list[list[tuple[str, Line]]] = []
    for pair in lines:
        if runs and common(runs[-1][-1][0], pair[0]) >= alike:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    found = [_arrange(run, 2 * alike) if len(run) > 1 else run for run in runs]
    found.sort(key=lambda run: -max(len(text) for text, _ in run))
    return [pair for run in found for pair in run]


def common(a: str, b: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Beginnings:
    """Lets a prompt wait while one is being read that begins as it does, since together each would
    read all of it. Threads share one."""

    def __init__(self) -> None:
        self._reading: dict[Event, str] = {}
        self._waiting: list[Event] = []
        self._read: deque[str] = deque(maxlen=_REMEMBERED)
        self._lock = Lock()

    @contextmanager
    def reading(self, text: str, cancelled: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """Wait for the turn of ``text``; call what this gives once it is read."""
        bell = Event()
        try:
            while not self._begin(bell, text):
                while not bell.wait(_LOOK_SECONDS) and not cancelled():
                    pass
                if not bell.is_set():
                    break
                bell.clear()
            yield lambda: self._end(bell)
        finally:
            self._end(bell)

    def _begin(self, bell: Event, text: str) -> bool:
        with gate.lock, self._lock:
            known = max((common(one, text) for one in self._read), default=0)
            if any(common(one, text) >= known + ALIKE for one in self._reading.values()):
                self._waiting.append(bell)
                return False
            self._reading[bell] = text
            return True

    def _end(self, bell: Event) -> None:
        with gate.lock, self._lock:
            text = self._reading.pop(bell, None)
            if text is None:
                self._waiting = [one for one in self._waiting if one is not bell]
                return
            self._read.append(text)
            for one in self._waiting:
                one.set()
            self._waiting = []
