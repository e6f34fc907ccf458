"""An answer that is being made: a thread asks the engine, the event loop takes what comes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .desk import Seat


class Bell:
    """Wakes the event loop for all workers that have something for it: once for those of a pass.

    A thread between them does it, for who calls an event loop lets go of the interpreter's lock,
    and who computes would have to wait for it while others write their JSON."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Event] = deque()
        self._rung = threading.Lock()  # while nobody rings
        self._rung.acquire()
        self.is_unheard = False  # the loop has ended before a worker
        threading.Thread(target=self._work, name="edgedb bell", daemon=True).start()

    def add(self, event: asyncio.Event) -> None:
        """Have ``event`` set by the next ``ring``."""
        self._waiting.append(event)

    def ring(self) -> None:
        """From any thread."""
        if self._waiting:
            with suppress(RuntimeError):  # it has rung already
                self._rung.release()

    def call(self, function: Callable[[], None]) -> None:
        """Have the event loop call it."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            self.is_unheard = True

    def _work(self) -> None:
        while not self.is_unheard:
            self._rung.acquire()
            self.call(self._wake)

    def _wake(self) -> None:
        while self._waiting:
            self._waiting.popleft().set()


class Worker:
    """Runs ``work`` in a thread of its own. What it hands out is kept until it is taken, so that
    the engine waits for no reader, and no choice of a token for one that writes JSON."""

    def __init__(
        self,
        work: Callable[[Callable[[Any], None], Callable[[], None], Callable[[], bool]], Any],
        seat: Seat,
        bell: Bell,
    ) -> None:
        """``work(put, flush, cancelled)`` puts items out, from any thread, and flushes them; what
        it returns is the ``result``. ``seat`` has its turn until then. ``flush`` is the same of all
        workers that have the same ``bell``."""
        self._work, self._seat, self._bell = work, seat, bell
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
            self._bell.add(self.woken)

    def _cancelled(self) -> bool:
        return self._is_cancelled.is_set() or self._bell.is_unheard

    def _run(self) -> None:
        try:
            self.result = self._work(self._put, self._bell.ring, self._cancelled)
        except Exception as error:
            self.error = error
        finally:
            self._bell.call(self._end)

    def _end(self) -> None:
        self._seat.done(counts=self.error is None and not self._is_cancelled.is_set())
        self.ended.set()
        self.woken.set()
