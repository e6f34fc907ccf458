"""Bounds on the work of one call, for input that would otherwise take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_TRIES = 3


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """What ``work()`` returns; it must take this thread at most ``seconds`` of processor time.

    A slow run counts only if all are: a collection of the garbage of the whole suite, or a
    neighbour on the same core, is no defect of the work.
    """
    for _ in range(_TRIES):
        started = time.thread_time()
        result = work()
        took = time.thread_time() - started
        if took < seconds:
            return result
    raise AssertionError(f"{_TRIES} runs took more than {seconds:g} s, the last {took:.2f} s")
