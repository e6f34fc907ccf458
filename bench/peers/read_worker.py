"""The memory's own limit, as a worker: ``python -m bench.peers.read_worker LIBRARY FILE.dbb``.

Reads the bytes that edgedb reads, in the same mapping of the same file, and computes nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

import numpy as np

from .worker import serve

DISTANCES = (0, 2048, 4096, 8192, 16384)  # bytes prefetched ahead; the best of them is the limit
CALIBRATION_SECONDS = 0.1


class Reader:
    """A mapped file and the distance that was fastest for each number of threads."""

    def __init__(self, library: str, path: str) -> None:
        self._call = ctypes.CDLL(library).read_limit
        self._call.restype = ctypes.c_double
        with open(path, "rb") as file:
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._map = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        self._data = np.frombuffer(self._map, np.uint8)
        self._best: dict[int, int] = {}
        self.description = {"version": "plain read", "isa": "", "size_bytes": self._data.size}

    def bytes_per_second(self, threads: int, distance: int, seconds: float) -> float:
        return float(
            self._call(
                ctypes.c_void_p(self._data.ctypes.data),
                ctypes.c_int64(self._data.size),
                ctypes.c_int32(threads),
                ctypes.c_int64(distance),
                ctypes.c_double(seconds),
            )
        )

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``n`` is bytes; ``elapsed`` seconds."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, request["cpus"])
        threads, seconds = request["threads"], request["seconds"]
        if threads not in self._best:
            self._best[threads] = max(
                DISTANCES, key=lambda d: self.bytes_per_second(threads, d, CALIBRATION_SECONDS)
            )
        rate = self.bytes_per_second(threads, self._best[threads], seconds)
        return {"n": rate * seconds, "elapsed": seconds}


def main() -> None:
    reader = Reader(*sys.argv[1:])
    serve(reader.answer, reader.description)


if __name__ == "__main__":
    main()
