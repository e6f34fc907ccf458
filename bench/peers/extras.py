"""Figures that are no race: a core taken away, the first token, an idle chat, numba's start."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .cases import NUMBA, ONE_PAIR, Case, peer
from .runner import Journal, Record, Worker, cpu_seconds, cpus_for
from .targets import BUSY, EXTRAS, FIRST_TOKEN_NAMES, IDLE

IDLE_SECONDS = 10.0
BUSY_NAMES = (ONE_PAIR, peer("TQ2_0"), peer("Q4_0"))


def run_extras(
    case: Case,
    models: tuple[Path, Path],
    journal: Journal,
    root: Path,
    rounds: int,
    *,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> bool:
    """Measure until ``rounds`` rounds are in the journal; whether they are.

    ``case`` is SmolLM2's, ``models`` its files of one and of two pairs. The first round also does
    what is measured once: the idle chat, and numba's two starts.
    """
    for number in range(journal.rounds(EXTRAS), rounds):
        if time.monotonic() > deadline:
            return False
        progress(f"first tokens, a busy core{', numba, a chat' * (not number)}: round {number + 1}")
        records = list(_first_tokens(models)) + list(_beside_a_busy_process(case, root))
        if number == 0:
            records += [*_numba_starts(models[0]), _idle_chat(models[1])]
        names = dict.fromkeys(record["name"] for record in records)
        journal.add([{"model": EXTRAS, "name": name} for name in names])
        journal.add([{"model": EXTRAS, "round": number, **record} for record in records])
    return True


def _record(name: str, test: str, threads: int, value: float) -> Record:
    return {"name": name, "test": test, "threads": threads, "value": value}


def _generate(model: Path, *options: str, **env: str) -> float:
    """Seconds of a whole ``edgedb generate`` that writes one token."""
    command = [sys.executable, "-m", "edgedb", "generate", str(model), "-p", "Once upon a time"]
    started = time.perf_counter()
    subprocess.run(
        [*command, "-n", "1", "--temperature", "0", *options],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def _first_tokens(models: tuple[Path, Path]) -> Iterator[Record]:
    for name, model in zip(FIRST_TOKEN_NAMES, models, strict=True):
        _generate(model)  # warms the page cache
        yield _record(name, "first token", 0, _generate(model))


def _numba_starts(model: Path) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as cache:
        for test in ("start, compiling", "start, cached"):
            seconds = _generate(model, "--backend", "numba", NUMBA_CACHE_DIR=cache)
            yield _record(NUMBA, test, 0, seconds)


def _beside_a_busy_process(case: Case, root: Path) -> Iterator[Record]:
    cpus = cpus_for(max(case.threads))
    request = {"test": "decode", "n": case.n_decode, "seconds": case.decode_seconds, "warm": 2}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(contestant, root, cpus))
            for contestant in case.contestants
            if contestant.name in BUSY_NAMES
        ]
        stack.enter_context(_busy(cpus[-1]))
        for worker in workers:
            for threads in sorted(case.threads, reverse=True):
                rate = worker.rate(**request, threads=threads, cpus=cpus)
                yield _record(worker.contestant.name, BUSY, threads, rate)


@contextmanager
def _busy(cpu: int) -> Iterator[None]:
    """A process that never rests, on one processor."""
    process = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"],
        preexec_fn=lambda: os.sched_setaffinity(0, [cpu]),
    )
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def _idle_chat(model: Path) -> Record:
    """The share of a core that a chat uses while it waits for its second message."""
    fd, child = pty.openpty()
    command = [sys.executable, "-m", "edgedb", "chat", str(model), "--max-tokens", "16"]
    env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "EDGEDB_NO_HISTORY": "1"}
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True
    )
    os.close(child)
    try:
        _until_quiet(fd)
        os.write(fd, b"Hello\r")
        _until_quiet(fd)
        before, started = cpu_seconds(process.pid), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        used = cpu_seconds(process.pid) - before
        return _record("edgedb chat", IDLE, 0, used / (time.perf_counter() - started))
    finally:
        process.kill()
        process.wait()
        os.close(fd)


def _until_quiet(fd: int, seconds: float = 3) -> None:
    """Read until nothing has come for some seconds."""
    while select.select([fd], [], [], seconds)[0]:
        os.read(fd, 65536)
