"""The memory's own limit, as a worker: ``python -m bench.peers.read_worker LIBRARY FILE.dbb``.

Reads the bytes that edgedb reads and computes nothing: in the same mapping of the same file, and in
a copy in huge pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

import numpy as np

from edgedb.model.residence import lies, place

from .worker import serve

DISTANCES = (0, 2048, 4096, 8192, 16384)  # bytes prefetched ahead; the best of them is the limit
CALIBRATION_SECONDS = 0.1
COPIED = 1 << 30  # bytes at most: many times what caches hold


class Reader:
    """A mapped file, a copy of its beginning, and the distance that was fastest for each number of
    threads in either."""

    def __init__(self, library: str, path: str) -> None:
        self._call = ctypes.CDLL(library).read_limit
        self._call.restype = ctypes.c_double
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            kinds = {"file": (size, "map"), "huge": (min(size, COPIED), "copy")}
            self._data = {
                pages: np.frombuffer(place(file.fileno(), *how).data, np.uint8)
                for pages, how in kinds.items()
            }
        for data in self._data.values():
            data[:: mmap.PAGESIZE].sum()  # so that all of it is there
        self._best: dict[tuple[str, int], int] = {}
        said = {pages: lies(kinds[pages][1], [data]) for pages, data in self._data.items()}
        self.description = {"version": "plain read", "isa": "", "size_bytes": size, **said}

    def bytes_per_second(self, pages: str, threads: int, distance: int, seconds: float) -> float:
        data = self._data[pages]
        return float(
            self._call(
                ctypes.c_void_p(data.ctypes.data),
                ctypes.c_int64(data.size),
                ctypes.c_int32(threads),
                ctypes.c_int64(distance),
                ctypes.c_double(seconds),
            )
        )

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``n`` is bytes; ``elapsed`` seconds; ``pages`` which of the two is read."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, request["cpus"])
        threads, seconds, pages = request["threads"], request["seconds"], request["pages"]
        if (pages, threads) not in self._best:
            self._best[pages, threads] = max(
                DISTANCES,
                key=lambda d: self.bytes_per_second(pages, threads, d, CALIBRATION_SECONDS),
            )
        rate = self.bytes_per_second(pages, threads, self._best[pages, threads], seconds)
        return {"n": rate * seconds, "elapsed": seconds}


def main() -> None:
    reader = Reader(*sys.argv[1:])
    serve(reader.answer, reader.description)


if __name__ == "__main__":
    main()
