"""The gate: a fork waits for who is inside, and both processes go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from edgedb import gate as module
from edgedb.gate import gate

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def status_of_child(check: Callable[[], bool]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


def test_a_fork_waits_until_all_others_are_outside() -> None:
    lock, inside, order = threading.Lock(), threading.Event(), []

    def work() -> None:
        with gate.lock, lock:
            inside.set()
            deadline = time.monotonic() + 10
            while not module._held and time.monotonic() < deadline:  # until the fork is under way
                time.sleep(0.001)
            order.append("out")

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    status = status_of_child(lambda: lock.acquire(timeout=5))
    order.append("forked")
    thread.join()
    assert (status, order) == (0, ["out", "forked"])
    assert lock.acquire(blocking=False)


def test_other_threads_come_in_after_a_fork_in_both_processes() -> None:
    def comes_in() -> bool:
        done = threading.Event()

        def work() -> None:
            with gate.lock:
                done.set()

        threading.Thread(target=work, daemon=True).start()
        return done.wait(5)

    assert comes_in()
    assert status_of_child(comes_in) == 0
    assert comes_in()


def test_who_is_inside_may_fork() -> None:
    with gate.lock:
        assert status_of_child(lambda: True) == 0
    assert not module._held


def test_locks_of_threads_that_are_gone_are_forgotten() -> None:
    def work() -> None:
        with gate.lock:
            pass

    before = len(module._locks)
    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(module._locks) <= before + 1


def test_the_end_of_the_process_waits_and_lets_nobody_in_again() -> None:
    """Here the thread would print, were it inside while the interpreter ends."""
    code = """
import atexit, os, threading, time
from edgedb.gate import gate

inside = threading.Event()

def work():
    while True:
        with gate.lock:
            os.write(1, b"<")
            inside.set()
            time.sleep(0.01)
            os.write(1, b">")

threading.Thread(target=work, daemon=True).start()
inside.wait()
# Registered before the gate's, it would run after it.
import edgedb.gate as module
atexit.unregister(module._close)
atexit.register(lambda: (os.write(1, b"end"), time.sleep(0.05)))
atexit.register(module._close)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(">end"), done.stdout
