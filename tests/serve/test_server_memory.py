"""Where a server's small things lie."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Heaps that glibc has after some threads allocated at once; argument: what to do before.
COUNT = """
import ctypes, sys, threading
exec(sys.argv[1])
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(4)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""
SHARED = "from edgedb.serve.memory import share_one_heap; share_one_heap()"


def heaps(before: str) -> int:
    command = [sys.executable, "-c", COUNT, before]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap")


def test_threads_share_a_heap() -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("needs glibc")
    assert heaps("import edgedb.serve.memory") > 1
    assert heaps(SHARED) == 1
