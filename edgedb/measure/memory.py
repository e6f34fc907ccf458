"""How much memory this machine has for a process, and how fast it is read."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import EdgeDBError
from ..model.residence import granted_bytes
from ..ops.cores import ROOT, control_groups, physical_cores

_READ_BYTES = 1 << 29  # far more than caches hold
_READS = 5


def memory_bytes(root: Path = ROOT) -> int:
    """Bytes of memory that this process may have: the machine's, or what its control groups grant.

    Raises ``EdgeDBError`` where the system does not say.
    """
    try:
        if sys.platform == "win32":
            whole = _windows_memory_bytes()
        else:
            whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise EdgeDBError("the system does not say how much memory it has: give --memory") from None
    granted = (granted_bytes(folder) for folder in control_groups(root, "memory"))
    return min([whole, *filter(None, granted)])


def _windows_memory_bytes() -> int:
    """What Windows' ``GlobalMemoryStatusEx`` says of the machine."""
    import ctypes

    class Status(ctypes.Structure):
        """``MEMORYSTATUSEX``: the whole memory is the third of its numbers."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("whole", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 6),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        raise OSError
    return int(status.whole)


def read_speed(threads: int | None = None, size_bytes: int = _READ_BYTES) -> float:
    """Bytes a second that ``threads`` threads (default: one for each core) read of memory together,
    the best of a few tries. Takes ``size_bytes`` of memory meanwhile."""
    threads = threads or physical_cores()
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            started = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = max(best, size_bytes / (time.perf_counter() - started))
    return best
