"""The gate: what neither a fork nor the end of the process may find half done.

A child process has the one thread that forked. A lock that another thread held stays locked in it
for ever, here or inside a library. And when the interpreter ends, a daemon thread that comes back
from a call that let go of the interpreter's lock is unwound on the spot, through frames of C++ and
Rust that do not bear it: SentencePiece, llguidance and np.unique abort the process.

So whoever takes a lock of this package, or calls such a library, does so inside the gate::

    with gate.lock: ...

Any number of threads may be inside at once. A fork first waits until all others are outside and
keeps them there until it is done; the end of the process does the same and never lets them in
again. Nothing inside may wait for another thread to come in, so no callback of a user's and no
``yield`` belongs there. The C library of this package needs no gate: ``ops/library.py``.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Any

_locks: set[weakref.ref[Any]] = set()  # one of each thread that ever was inside
_changing = threading.RLock()  # held by who closes the gate, or brings a new lock
_held: list[Any] = []  # by who closed the gate


class _Gate(threading.local):
    """A lock of the calling thread's own: nobody but a closing gate ever waits for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        with _changing:
            _locks.add(weakref.ref(self.lock, _locks.discard))


gate = _Gate()


def _close() -> None:
    _take(_changing)
    for reference in tuple(_locks):
        if (lock := reference()) is not None:
            _take(lock)


def _take(lock: Any) -> None:
    lock.acquire()
    _held.append(lock)


def _open() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    # In the child, too, all of them belong to the thread that forked.
    os.register_at_fork(before=_close, after_in_parent=_open, after_in_child=_open)
atexit.register(_close)
