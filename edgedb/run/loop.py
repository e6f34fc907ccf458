"""The engine's loop: sessions of any threads hand in what they want read, one thread computes.

There is no thread of its own. Whoever hands in a turn while nobody computes becomes the leader: it
takes what waits, runs passes until its own turn is done, and leaves the lead to another one that
waits. So a stream that is alone calls the network as if nobody else could come, and nothing has to
be woken, stopped or started again around a fork or the end of the process.

Of streams that are read together, the leader also makes the next turns, where anybody can make them
(``Turn.follow``): then the next pass can begin at once, and while it runs the owners do what they
do with the tokens that they got.

Whatever may be interrupted is: a leader that Ctrl-C takes away has its turns done again by the next
one, with the same bits.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from ..gate import gate
from ..model.head import Needed
from ..model.kvcache import KVCache
from ..model.network import Network, Reading, Wanted
from ..ops.buffer import Buffer
from .schedule import Place, Schedule, Times

# How often who waits looks whether it is cancelled, or else whether it should lead and nobody has
# said so.
_LOOK_SECONDS, _REST_SECONDS = 0.04, 0.2
# Streams that come back within this share of a pass go into the next one together.
_GATHER_SHARE, _GATHER_LEAST = 0.1, 0.0005


class Turn:
    """What one sequence wants of a pass, and what it got."""

    def __init__(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        wanted: Wanted,
        place: Place,
        *,
        is_stream: bool,
        most: int,
        n_guesses: int = 0,
        out: Buffer | None = None,
        follow: Callable[[Turn], Turn | None] | None = None,
        goes_on: bool = False,
        thread: int | None = None,
    ) -> None:
        """``wanted`` of the last of ``tokens``; ``out`` float32 ``[1, vocab]`` takes its logits.
        ``is_stream``, ``most`` and ``n_guesses``: see ``schedule.Waiting``. ``follow`` makes the
        sequence's next turn of what this one got, if there is one; or this one goes on, as another
        one, and its owner hears nothing. Whoever computes may call it while the owner waits;
        ``goes_on``: also if there is no other sequence. ``thread`` is the owner's, by default the
        calling one."""
        self.cache, self.tokens, self.wanted, self.place = cache, tokens, wanted, place
        self.is_stream, self.most, self.out = is_stream, most, out
        self.n_guesses, self.follow, self.goes_on = n_guesses, follow, goes_on
        self.start = cache.length
        self.n = 0  # tokens that were read
        self.result: np.ndarray | None = None
        self.rows, self.seconds = 0, 0.0  # of the whole pass
        self.others = 0  # sequences that were read with it
        self.error: Exception | None = None
        self.is_done = self.is_withdrawn = False
        self.is_awaited = False  # its owner is here and does nothing but wait for it
        self.flush: Callable[[], None] | None = None  # behind what follow gave out
        self.thread = thread or threading.get_ident()
        self._bell = threading.Lock()
        self._bell.acquire(blocking=False)

    def go_on(self, tokens: Sequence[int], wanted: Wanted) -> Turn:
        """Want something else, behind what was read."""
        self.tokens, self.wanted, self.start = tokens, wanted, self.cache.length
        self.n, self.result = 0, None
        return self

    def reading(self, n: int) -> Reading:
        """What a pass is told of it, if that reads ``n`` of its tokens."""
        whole = Reading(self.cache, self.tokens, self.wanted, self.out)
        if n == len(self.tokens):
            return whole
        return whole._replace(tokens=self.tokens[:n], wanted=self.wanted if whole.of_each else None)

    def keep(self) -> None:
        """Have logits, which may lie where the next pass puts others, in memory of its own."""
        if self.result is None or self.wanted in ("all", "hidden"):
            return
        if self.out is None:
            self.result = self.result.copy()
        else:
            self.out.array[0] = self.result
            self.result = self.out.array[0]

    def wait(self, seconds: float) -> None:
        """Until ``ring``, or so long."""
        self._bell.acquire(timeout=seconds)

    def ring(self) -> None:
        """End its ``wait``, or the next one."""
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._bell.release()

    @property
    def ends(self) -> bool:
        """See ``schedule.Waiting``."""
        return self.wanted == "last" or isinstance(self.wanted, Needed)

    @property
    def is_mine(self) -> bool:
        """Whether it is the calling thread's."""
        return self.thread == threading.get_ident()


class _Lead:
    """The right to compute: it lasts as long as this is alive."""

    __slots__ = ("__weakref__", "thread", "turn")

    def __init__(self, turn: Turn) -> None:
        self.turn, self.thread = turn, threading.get_ident()


class Loop:
    """Computes turns of many threads. ``state`` is the scratch of whatever pass is running."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.state = network.state()
        self._schedule = Schedule()
        self._waiting: list[weakref.ref[Turn]] = []  # in order of arrival
        self._computing: list[weakref.ref[Turn]] = []
        self._absent: weakref.WeakSet[Place] = weakref.WeakSet()  # streams that will come back
        self._last_seconds = 0.0
        self._leader: Callable[[], _Lead | None] = _nobody
        self._lock = threading.Lock()
        _alive.add(self)

    @property
    def times(self) -> Times:
        """How long passes take."""
        return self._schedule.times

    def run(self, turn: Turn, cancelled: Callable[[], bool] | None = None) -> None:
        """Returns when ``turn`` is done; or withdrawn, if it was ``cancelled`` while it waited.

        Raises what the pass raised.
        """
        turn.is_awaited = True
        lead = None if turn.is_done else self._hand_in(turn)
        try:
            if lead is not None:
                self._compute(turn, lead)
            while not turn.is_done:
                if cancelled is not None and cancelled() and self.withdraw(turn):
                    break
                if lead is None:
                    turn.wait(_REST_SECONDS if cancelled is None else _LOOK_SECONDS)
                lead = self._hand_in(turn, lead)
                if lead is not None:
                    self._compute(turn, lead)
        finally:
            if lead is not None:
                self._hand_over(lead)
        if turn.error is not None:
            raise turn.error

    def withdraw(self, turn: Turn) -> bool:
        """Take back ``turn`` unless it is being computed."""
        with gate.lock, self._lock:
            if self._others_lead() and any(one() is turn for one in self._computing):
                return False
            turn.is_withdrawn = True
            self._waiting = [one for one in self._waiting if one() is not turn]
            return True

    def leave(self, place: Place) -> None:
        """Nobody waits for this one any longer."""
        with gate.lock, self._lock:
            self._absent.discard(place)
            self._call_leader()

    def _hand_in(self, turn: Turn, lead: _Lead | None = None) -> _Lead | None:
        """Have ``turn`` wait, if it does not yet; the lead, if it has it or nobody else has."""
        with gate.lock, self._lock:
            self._absent.discard(turn.place)
            if lead is not None and self._leader() is lead:
                return lead
            others_lead = self._others_lead()
            if not others_lead and self._computing:  # who computed was interrupted: again
                self._waiting, self._computing = [*self._computing, *self._waiting], []
            both = (*self._waiting, *self._computing)
            if not any(one() is turn for one in both):
                self._waiting.append(weakref.ref(turn))
            if others_lead:
                self._call_leader()
                return None
            lead = _Lead(turn)
            self._leader = weakref.ref(lead)
            return lead

    def _others_lead(self) -> bool:
        """Whether another thread has the lead. What is left of an interrupted one of this thread,
        because somebody keeps the exception, is none."""
        leader = self._leader()
        return leader is not None and leader.thread != threading.get_ident()

    def _call_leader(self) -> None:
        """The last one that it waits for is there."""
        if not self._absent and (leader := self._leader()) is not None:
            leader.turn.ring()

    def _hand_over(self, lead: _Lead) -> None:
        with gate.lock, self._lock:
            if self._leader() is lead:
                self._leader = _nobody
            for one in (*self._waiting, *self._computing):  # these, if it was interrupted
                if (turn := one()) is not None and turn.is_awaited:
                    turn.ring()
                    return

    def _compute(self, own: Turn, lead: _Lead) -> None:
        """One pass over what waits."""
        self._gather(own)
        with gate.lock, self._lock:
            self._absent.clear()
            waiting = (one() for one in self._waiting)
            turns = [t for t in waiting if t and not (t.is_done or t.is_withdrawn)]
            chosen = [(turns[i], n) for i, n in self._schedule.plan(turns)]
            picked = {id(turn) for turn, _ in chosen}
            self._computing = [weakref.ref(turn) for turn, _ in chosen]
            self._waiting = [weakref.ref(turn) for turn in turns if id(turn) not in picked]
        chosen = [(turn, n) for turn, n in chosen if self._is_ready(turn, n)]
        readings = [turn.reading(n) for turn, n in chosen]
        rows = sum(n for _, n in chosen)
        error: Exception | None = None
        results: list[np.ndarray | None] = [None] * len(chosen)
        started = time.perf_counter()
        try:
            if readings:
                results = self._network.read(readings, self.state)
            if len(results) == 1 and results[0] is not None and readings[0].of_each:
                results = [results[0].copy()]  # it is the state's own
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - started
        with gate.lock, self._lock:
            if self._leader() is not lead:
                return  # a signal handler came between and did it all
            if readings and error is None:
                self._schedule.times.measured(rows, seconds)
                self._last_seconds = seconds
            for (turn, n), result in zip(chosen, results, strict=True):
                turn.n, turn.result, turn.rows, turn.seconds = n, result, rows, seconds
                turn.others = len(chosen) - 1
                turn.error = error
        following = [_next(t) if t.goes_on or len(chosen) > 1 else None for t, _ in chosen]
        for (turn, _), after in zip(chosen, following, strict=True):
            if after is None and len(readings) > 1:
                turn.keep()
        with gate.lock, self._lock:
            if self._leader() is not lead:
                return
            for (turn, _), after in zip(chosen, following, strict=True):
                if after is not None:
                    self._waiting.append(weakref.ref(after))
                elif turn.is_awaited:
                    self._absent.add(turn.place)
                turn.is_done = after is not turn
                if turn.is_done and turn is not own:
                    turn.ring()
            self._computing = []
        for flush in {turn.flush for turn, _ in chosen if turn.flush is not None}:
            flush()

    def _gather(self, own: Turn) -> None:
        """Wait for streams that come back at once, and for those that said when they will."""
        started = time.perf_counter()
        usual = started + max(_GATHER_LEAST, _GATHER_SHARE * self._last_seconds)
        while self._absent:
            with gate.lock, self._lock:
                said = max((place.due for place in self._absent), default=0.0)
            left = max(usual, min(said, started + self._last_seconds)) - time.perf_counter()
            if left <= 0:
                break
            own.wait(left)

    def _is_ready(self, turn: Turn, n: int) -> bool:
        """Whether there is memory for ``n`` tokens; if not, that is for ``turn`` alone."""
        try:
            turn.cache.truncate(turn.start)  # where another leader had begun
            turn.cache.reserve(n)
        except Exception as error:
            turn.error, turn.is_done = error, True
            turn.ring()
            return False
        return True

    def _restart(self) -> None:
        """In a forked child: of other threads' turns nothing will come."""
        self._lock = threading.Lock()
        self._absent = weakref.WeakSet()
        leader = self._leader()
        if leader is None or leader.thread != threading.get_ident():
            self._leader = _nobody
            mine = [one for one in (*self._computing, *self._waiting) if (t := one()) and t.is_mine]
            self._waiting, self._computing = mine, []


def _next(turn: Turn) -> Turn | None:
    """What follows ``turn``, if its owner waits for it and cannot be in the way. The main thread
    does that for nobody: Ctrl-C would come between a choice and what is noted of it."""
    ready = turn.is_awaited and turn.error is None and turn.n == len(turn.tokens)
    if turn.follow is None or not ready or threading.current_thread() is threading.main_thread():
        return None
    try:
        return turn.follow(turn)
    except Exception as error:
        turn.error = error
        return None


def _nobody() -> None:
    return None


_alive: weakref.WeakSet[Loop] = weakref.WeakSet()


def _restart_all() -> None:
    for loop in list(_alive):
        loop._restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_all)
