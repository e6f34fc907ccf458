"""Who is answered when: so many at once, so many more may wait, others are told to come back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable

from .errors import Refused

_MOST_SECONDS = 600  # to ask anybody to wait
_WEIGHT = 0.2  # of the last answer in the mean time of one


class Seat:
    """A request that was let in. It takes a turn with the engine, and leaves when all is sent."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turn: asyncio.Future[None] | None = None
        self.places = 1
        self._began: float | None = None
        self._is_open = True

    async def turn(self, answers: int = 1) -> int:
        """Wait until the engine may be asked; ``done`` gives it back.

        Returns how many of ``answers`` may be made at once.
        """
        self.places = min(answers, self._desk.parallel)
        self._turn = asyncio.get_running_loop().create_future()
        self._desk._waiting.append(self)
        self._desk._next()
        try:
            await self._turn
        except asyncio.CancelledError:
            if self._turn.done() and not self._turn.cancelled():
                self._desk._release(self, None)
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    self._desk._waiting.remove(self)
                self._desk._next()
            raise
        self._began = time.monotonic()
        self._desk._began.add(self)
        return self.places

    def call(self) -> bool:
        """Its turn has come; False if nobody waits for it any more."""
        if self._turn is None or self._turn.done():
            return False
        self._turn.set_result(None)
        return True

    def done(self, *, counts: bool) -> None:
        """The engine is asked no more. ``counts``: whether the answer came to its own end, so that
        its time says something of others'."""
        if self._began is not None:
            took, self._began = time.monotonic() - self._began, None
            self._desk._began.discard(self)
            self._desk._release(self, took if counts else None)

    def leave(self) -> None:
        """All is sent, or nobody is there to take it."""
        if self._is_open:
            self._is_open = False
            self._desk._open -= 1
            self._desk._look()


class Desk:
    """Seats of requests. Belongs to the event loop's thread."""

    def __init__(self, parallel: int, max_queue: int) -> None:
        self.parallel, self.max_queue = parallel, max_queue
        self.running = 0  # answers that are made now
        self._open = 0
        self._waiting: deque[Seat] = deque()
        self._began: set[Seat] = set()
        self._seconds: float | None = None  # that an answer takes
        self._emptied: list[Callable[[], None]] = []

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """Requests that are here: waiting, being answered, or being sent."""
        return self._open

    def enter(self) -> Seat:
        """Raises ``Refused`` if all places are taken."""
        if self._open >= self.parallel + self.max_queue:
            raise Refused(
                429,
                f"{self._open} requests are being answered or wait; try again later",
                code="queue_full",
                headers={"Retry-After": str(self.retry_after())},
            )
        self._open += 1
        return Seat(self)

    def retry_after(self) -> int:
        """Seconds until a place should be free: answers of the mean length, so many at once."""
        seconds = self._seconds
        if seconds is None:  # none has ended yet: the oldest one says at least how long they take
            now = time.monotonic()
            seconds = max((now - (s._began or now) for s in self._began), default=1.0)
        return min(max(1, math.ceil(seconds / self.parallel)), _MOST_SECONDS)

    def when_empty(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once, as soon as nobody is here."""
        self._emptied.append(call)
        self._look()

    def _look(self) -> None:
        while self._open == 0 and self._emptied:
            self._emptied.pop()()

    def _release(self, seat: Seat, seconds: float | None) -> None:
        self.running -= seat.places
        if seconds is not None:
            before = seconds if self._seconds is None else self._seconds
            self._seconds = before + _WEIGHT * (seconds - before)
        self._next()

    def _next(self) -> None:
        while self._waiting and self.running + self._waiting[0].places <= self.parallel:
            seat = self._waiting.popleft()
            if seat.call():
                self.running += seat.places
