"""What an application may do at any moment, many times: leave, fork, interrupt, cancel.

    python tests/stress.py exit MODEL --runs 500 [--work read|decode|tokenize|grammar|native]
    python tests/stress.py fork MODEL --runs 100
    python tests/stress.py interrupt MODEL --runs 200
    python tests/stress.py asyncio MODEL --runs 200

Every run ends with the same text as undisturbed ones. ``run/test_stress.py`` does a few of each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import edgedb
from edgedb.format.tensors import BLOCK_BYTES, PairTensor, tile_grid
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.native import NativeOps

PROMPTS = ["Once upon a time", "What is the capital of France?", "One, two, one, two, one,"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
LONG = "Once upon a time there was a little girl named Lily. " * 200
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
HANG_SECONDS = 30


def load(path: str | Path, backend: str) -> edgedb.Model:
    return edgedb.load(path, backend=backend, threads=2, verify=False)


def expected(model: edgedb.Model) -> list[str]:
    return [model.generate(prompt, **GREEDY).text for prompt in PROMPTS]


# ---- the end of the process, around daemon threads ----


def read(model: edgedb.Model, busy: threading.Event) -> None:
    session, ids = model.session(), model.tokenize(LONG)[: model.context - 1]
    while True:
        session.rewind(0)
        session.prefill(ids, progress=lambda *_: busy.set())


def decode(model: edgedb.Model, busy: threading.Event) -> None:
    while True:
        for _ in model.stream(random.choice(PROMPTS) * random.randint(1, 9), max_tokens=50):
            busy.set()


def tokenize(model: edgedb.Model, busy: threading.Event) -> None:
    while True:
        busy.set()
        model.detokenize(model.tokenize(LONG))


def grammar(model: edgedb.Model, busy: threading.Event) -> None:
    while True:
        for _ in model.stream("JSON:", max_tokens=50, json_schema=SCHEMA):
            busy.set()


def native(model: edgedb.Model, busy: threading.Event) -> None:
    """Calls that are longer than the end of an interpreter, some 50 ms."""
    ops = NativeOps(threads=1)
    rows, cols = 16384, 4096
    blocks = aligned_zeros((1, *tile_grid(rows, cols), BLOCK_BYTES), np.uint8)
    matrix = ops.matrix(PairTensor(blocks, np.ones((1, rows), np.float32), rows, cols))
    x, out = ops.buffer((128, cols)), ops.buffer((128, rows))
    ops.matmul(matrix, x, out, 128)
    busy.set()
    while True:
        ops.matmul(matrix, x, out, 128)


WORK: dict[str, Callable[[edgedb.Model, threading.Event], None]] = {
    function.__name__: function for function in (read, decode, tokenize, grammar, native)
}


def leave(path: str, backend: str, work: str, seed: int) -> None:
    """End this process around three threads at work; the C library outlives Python by a second."""
    random.seed(seed)
    model = load(path, backend)
    signals = [threading.Event() for _ in range(3)]
    for busy in signals:
        threading.Thread(target=WORK[work], args=(model, busy), daemon=True).start()
    for busy in signals:
        busy.wait()
    threading.Event().wait(random.random() * 0.05)
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.sleep, None)  # is called with the exit status: sleep(1)
    sys.exit(1)


def leave_often(path: str | Path, runs: int, backend: str, work: str) -> Counter[str]:
    """How ``runs`` processes ended that left around running work."""
    # Memory that is freed is unmapped: who still uses it crashes, instead of by bad luck only.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}

    def one(seed: int) -> str:
        arguments = ["leave", str(path), "--backend", backend, "--work", work, "--runs", str(seed)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=10 * HANG_SECONDS,
        )
        return (
            "well"
            if (done.returncode, done.stderr) == (1, "")
            else f"{done.returncode}: {done.stderr[-300:]}"
        )

    with ThreadPoolExecutor(3) as pool:
        return Counter(pool.map(one, range(runs)))


# ---- fork, while other threads are anywhere ----


def fork_often(path: str | Path, runs: int, backend: str) -> Counter[str]:
    """How ``runs`` children ended, forked while threads tokenized and decoded."""
    model = load(path, backend)
    texts = expected(model)
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_until, args=(stopped, function))
        for function in (
            lambda: model.tokenize(LONG[:2000]),
            lambda: model.tokenize(LONG[:2000]),
            lambda: model.generate(PROMPTS[0], **GREEDY),
        )
    ]
    for thread in threads:
        thread.start()
    try:
        return Counter(_child(lambda: expected(model) == texts) for _ in range(runs))
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def _until(stopped: threading.Event, function: Callable[[], object]) -> None:
    while not stopped.is_set():
        function()


def _child(check: Callable[[], bool]) -> str:
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANG_SECONDS)
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else f"signal {os.WTERMSIG(status)}"
    return {0: "well", 1: "another text", 2: "exception"}[os.WEXITSTATUS(status)]


# ---- Ctrl-C at any moment ----


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """``KeyboardInterrupt`` in this, the main thread, as Ctrl-C raises it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def interrupt_often(path: str | Path, runs: int, backend: str) -> Counter[str]:
    """What one session answers after each of ``runs`` interrupted answers."""
    model = load(path, backend)
    texts = expected(model)
    session = model.session()
    chance = random.Random(1)
    ended: Counter[str] = Counter()
    for run in range(runs):
        which = run % len(PROMPTS)
        with contextlib.suppress(KeyboardInterrupt), interrupted_after(chance.uniform(1e-4, 0.1)):
            while True:
                session.generate(PROMPTS[which - 1] + str(run % 7), **GREEDY, prompt_lookup=4)
        same = session.generate(PROMPTS[which], **GREEDY).text == texts[which]
        ended["well" if same else "another text"] += 1
    return ended


# ---- event loops that cancel ----


def loop_often(path: str | Path, runs: int, backend: str) -> Counter[str]:
    """What ``runs`` event loops get that answer in threads and cancel one of the answers."""
    model = load(path, backend)
    texts = expected(model)
    chance = random.Random(2)

    async def answers() -> str:
        cancelled = threading.Event()

        def endless() -> None:
            for _ in model.stream(PROMPTS[0], cancelled=cancelled.is_set):
                pass

        doomed = asyncio.create_task(asyncio.to_thread(endless))
        asked = [asyncio.to_thread(model.generate, prompt, **GREEDY) for prompt in PROMPTS]
        asyncio.get_running_loop().call_later(chance.random() / 20, doomed.cancel)
        found = [answer.text for answer in await asyncio.gather(*asked)]
        doomed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doomed
        cancelled.set()  # the thread itself hears of nothing else
        return "well" if found == texts else "another text"

    return Counter(asyncio.run(answers()) for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Stress: see the file.")
    parser.add_argument("what", choices=("exit", "fork", "interrupt", "asyncio", "leave"))
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--work", choices=sorted(WORK), default="decode")
    args = parser.parse_args()
    if args.what == "leave":
        leave(args.model, args.backend, args.work, args.runs)
    elif args.what == "exit":
        ended = leave_often(args.model, args.runs, args.backend, args.work)
    else:
        often = {"fork": fork_often, "interrupt": interrupt_often, "asyncio": loop_often}
        ended = often[args.what](args.model, args.runs, args.backend)
    print(f"{args.what}, {args.backend}: {dict(ended)}")
    sys.exit(0 if set(ended) == {"well"} else 1)


if __name__ == "__main__":
    main()
