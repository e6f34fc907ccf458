"""How many positions to keep in memory, where nobody says."""

from __future__ import annotations

from ..errors import EdgeDBError
from ..measure.memory import memory_bytes
from ..ops.pages import PAGE
from ..run.loaded import CacheRoom

SHARE = 8  # an eighth of the memory: weights are read through the page cache, which needs more
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
