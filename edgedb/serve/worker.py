"""An answer that is being made: a thread asks the engine, the event loop takes what comes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .desk import Seat


class Worker:
    """Runs ``work`` in a thread of its own. What it hands out is kept until it is taken, so that
    the engine waits for no reader, and no choice of a token for one that writes JSON."""

    def __init__(
        self, work: Callable[[Callable[[Any], None], Callable[[], bool]], Any], seat: Seat
    ) -> None:
        """``work(put, cancelled)`` puts items out; what it returns is the ``result``. ``seat`` has
        its turn until then."""
        self._work, self._seat = work, seat
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._is_called = False
        self._is_cancelled = threading.Event()
        self.woken = asyncio.Event()
        self.ended = asyncio.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="edgedb answer", daemon=True).start()

    def cancel(self) -> None:
        """Have it end within 100 ms."""
        self._is_cancelled.set()

    def take(self) -> Iterator[Any]:
        """What came since the last time."""
        self.woken.clear()
        self._is_called = False
        while self._items:
            yield self._items.popleft()

    def _put(self, item: Any) -> None:
        self._items.append(item)
        if not self._is_called:
            self._is_called = True
            self._call(self.woken.set)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended before this one
            self._is_cancelled.set()

    def _run(self) -> None:
        try:
            self.result = self._work(self._put, self._is_cancelled.is_set)
        except Exception as error:
            self.error = error
        finally:
            self._call(self._end)

    def _end(self) -> None:
        self._seat.done(counts=self.error is None and not self._is_cancelled.is_set())
        self.ended.set()
        self.woken.set()
