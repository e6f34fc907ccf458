"""How many positions to keep in memory, where nobody says, and where small things lie."""

from __future__ import annotations

import ctypes
import sys

from ..errors import EdgeDBError
from ..measure.memory import memory_bytes
from ..ops.pages import PAGE
from ..run.loaded import CacheRoom

SHARE = 8  # an eighth of the memory: weights are read through the page cache, which needs more
_M_ARENA_MAX = -8  # of glibc's malloc.h
_UNKNOWN_CONTEXTS = 4  # where the system does not say what there is


def room_for(parallel: int) -> CacheRoom:
    """As much as ``parallel`` full contexts, or as a share of the memory holds; at least one."""

    def room(context: int, size_bytes: int) -> int:
        whole = -(-context // PAGE) * PAGE
        try:
            contexts = memory_bytes() / SHARE / max(size_bytes, 1)
        except EdgeDBError:
            contexts = _UNKNOWN_CONTEXTS
        return max(whole, min(parallel * whole, int(contexts * whole)))

    return CacheRoom(room)


def share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library is glibc; before any starts.

    It would give threads heaps of their own, up to eight a core, and what answers leave in each
    adds up: under mixed load a server of 79 MiB went on growing, by 29 MiB in half an hour.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
