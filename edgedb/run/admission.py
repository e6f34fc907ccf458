"""Who may begin to answer: memory for all of it first, so that none has to end for lack of it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..errors import ContextFullError
from ..gate import gate
from ..ops.pages import PAGE
from .prefixes import Prefixes

_LOOK_SECONDS = 0.04  # how often who waits looks whether it was cancelled


class Holder(Protocol):
    """A sequence in memory."""

    @property
    def n_pages(self) -> int:
        """Pages that it holds now."""


class _Grant:
    """Leave to answer: it lasts as long as this is alive."""

    __slots__ = ("__weakref__", "holder", "pages", "thread")

    def __init__(self, holder: Holder, pages: int) -> None:
        self.holder, self.pages = weakref.ref(holder), pages
        self.thread = threading.get_ident()


class Admission:
    """Counts pages; threads share one. Without a bound everybody may begin."""

    def __init__(self, prefixes: Prefixes, positions: int | None) -> None:
        """positions: that all sequences of the model may hold together."""
        self._prefixes = prefixes
        self._room = None if positions is None else positions // PAGE
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._grants: weakref.WeakSet[_Grant] = weakref.WeakSet()
        self._queue: list[weakref.ref[_Grant]] = []  # in order of arrival
        self._lock = threading.Lock()
        if self._room is not None:
            prefixes.limit(self._room)
            _alive.add(self)

    def register(self, holder: Holder) -> None:
        """Count what ``holder`` has as long as it is there."""
        if self._room is not None:
            with gate.lock, self._lock:
                self._holders.add(holder)

    @property
    def most(self) -> int | None:
        """Positions that one answer may come to hold, or None where there is no bound."""
        return None if self._room is None else self._room * PAGE

    @property
    def held_pages(self) -> int:
        """Pages that sequences hold, shared ones once for each; 0 where there is no bound."""
        with gate.lock, self._lock:
            return sum(one.n_pages for one in self._holders)

    @property
    def waiting(self) -> int:
        """Answers that have not begun."""
        return len(self._queue)

    @contextmanager
    def answering(
        self,
        holder: Holder,
        positions: int,
        cancelled: Callable[[], bool] | None,
        take: Callable[[], None],
    ) -> Iterator[bool]:
        """Wait until there is memory for ``holder`` to grow to ``positions``, and keep it for as
        long as this lasts; or until it is cancelled: then False.

        ``take`` is called once it begins: ``holder`` takes what it can use of the pages that are
        kept, before those that have no room beside the answer are let go.

        Raises ``ContextFullError`` if that will never be, whoever else ends.
        """
        if self._room is None:
            take()
            yield True
            return
        grant = _Grant(holder, -(-positions // PAGE))
        if grant.pages > self._room:
            raise ContextFullError(
                f"an answer of up to {positions} positions needs more than the {self._room * PAGE} "
                "that there is memory for; ask for fewer tokens or load with more cache_tokens"
            )
        turn = weakref.ref(grant)
        with gate.lock, self._lock:
            self._queue.append(turn)
        event = threading.Event()
        try:
            while not self._begins(grant, take):
                if cancelled is not None and cancelled():
                    yield False
                    return
                event.wait(_LOOK_SECONDS)
            yield True
        finally:
            self._end(grant)
            del grant

    def _restart(self) -> None:
        """In a forked child: other threads' answers will not end."""
        mine = threading.get_ident()
        for grant in list(self._grants):
            if grant.thread != mine:
                self._grants.discard(grant)
                if (holder := grant.holder()) is not None:
                    self._holders.discard(holder)
        self._queue = [one for one in self._queue if (g := one()) and g.thread == mine]

    def _end(self, grant: _Grant) -> None:
        with gate.lock, self._lock:
            self._grants.discard(grant)
            self._queue = [one for one in self._queue if one() not in (None, grant)]
            self._prefixes.limit(self._free(grant.holder()))

    def _free(self, but: Holder | None) -> int:
        """Pages that nobody holds or may come to hold, ``but`` its idle ones."""
        assert self._room is not None, "there is a bound"
        answering = {id(one.holder()) for one in self._grants} | {id(but)}
        idle = sum(one.n_pages for one in self._holders if id(one) not in answering)
        return self._room - idle - sum(one.pages for one in self._grants)

    def _begins(self, grant: _Grant, take: Callable[[], None]) -> bool:
        with gate.lock, self._lock:
            self._queue = [one for one in self._queue if one() is not None]
            if self._queue[0]() is not grant:
                return False
            free = self._free(grant.holder())
            if grant.pages > free and not self._grants:
                raise ContextFullError(
                    f"{grant.pages * PAGE} positions for an answer do not fit: sessions that are "
                    f"not answering leave {free * PAGE}; let go of some of them"
                )
            if grant.pages > free:
                return False
            del self._queue[0]
            self._grants.add(grant)
            take()
            self._prefixes.limit(free - grant.pages)
            return True


_alive: weakref.WeakSet[Admission] = weakref.WeakSet()


def _restart_all() -> None:
    for admission in list(_alive):
        admission._restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_all)
