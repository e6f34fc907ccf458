"""A worker's side of the pipe: one engine with one model, told what to run.

The worker prints one JSON line about itself, then answers each request, a JSON line
``{"test": "decode", "n": 64, "seconds": 2.5, "threads": 1, "cpus": [0], "warm": 2, "depth": 0}``,
by ``{"n": 64, "elapsed": 1.9}``, of a prompt with ``stops`` by the seconds until each as well. Only
the standard library: the llama.cpp worker runs in an environment without this project's
dependencies.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """What a worker wraps. Token ids are the engine's choice; nothing is sampled."""

    description: dict[str, Any]  # engine, version, isa, bytes_per_token, size_bytes

    def reset(self, threads: int, depth: int = 0) -> None:
        """Forget all tokens behind the first ``depth``, which are read if they were not; what
        follows runs with so many threads."""

    def decode(self) -> None:
        """Read one more token and compute its logits."""

    def prompt(self, n: int) -> None:
        """Read ``n`` tokens at once and compute the last one's logits."""


def run(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request. ``seconds`` ends decoding early, after the token under way. The test
    ``rows`` reads ``n`` tokens at once, again and again for so long."""
    if hasattr(os, "sched_setaffinity"):
        # This thread only: a pool's threads keep the set they were created with, and do not run
        # in tests of fewer threads.
        os.sched_setaffinity(0, request["cpus"])
    threads, n, warm = request["threads"], request["n"], request["warm"]
    if request["test"] == "rows":
        return _repeat(engine, n, threads, request["seconds"])
    engine.reset(threads, request.get("depth", 0))
    if request["test"] == "prompt":
        if warm:
            engine.prompt(warm)
            engine.reset(threads)
        return _read(engine, n, request.get("stops") or [n])
    for _ in range(warm):
        engine.decode()
    done, started = 0, time.perf_counter()
    deadline = started + request["seconds"]
    while True:
        engine.decode()
        done, now = done + 1, time.perf_counter()
        if done == n or now > deadline:
            return {"n": done, "elapsed": now - started}


def _read(engine: Engine, n: int, stops: list[int]) -> dict[str, Any]:
    read, times, started = 0, [], time.perf_counter()
    for stop in stops:
        engine.prompt(stop - read)
        read = stop
        times.append(time.perf_counter() - started)
    return {"n": n, "elapsed": times[-1], "stops": times}


def _repeat(engine: Engine, n: int, threads: int, seconds: float) -> dict[str, Any]:
    done, started = 0, 0.0
    while True:
        engine.reset(threads)
        started = started or time.perf_counter()
        engine.prompt(n)
        done, now = done + n, time.perf_counter()
        if now > started + seconds:
            return {"n": done, "elapsed": now - started}


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], description: dict[str, Any]) -> None:
    """Introduce the worker and answer requests until the pipe is closed."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print whatever they like: not into the answers

    def reply(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    reply(description)
    for line in sys.stdin:
        reply(answer(json.loads(line)))
