"""Runs workers, one a core, watches them, and starts a new one where one died or hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import NamedTuple

from .kinds import KINDS
from .report import Count, Finding
from .worker import Outcome, input_of, processor_seconds, unlimited, work

HANG_SECONDS = 2.0  # of processor time; a busy machine makes nothing hang
STUCK_SECONDS = 20.0  # on the clock: something waits for what never comes
_POLL_SECONDS = 0.1
_SAVED_PER_SIGNATURE = 3
_context = multiprocessing.get_context("fork")
Record = Callable[[tuple[str, str], str, str], None]  # job, what, detail


class Plan(NamedTuple):
    """What a run does: inputs of ``kinds`` in turn, made from ``seed`` and their number."""

    kinds: list[str]
    seed: int
    workers: int

    def jobs(self, worker: int) -> Iterator[tuple[str, str]]:
        """(kind, seed of the input) without end, for one of the workers."""
        cycle = [name for name in self.kinds for _ in range(KINDS[name].share)]
        Random(self.seed).shuffle(cycle)
        for number in islice(count(), worker, None, self.workers):
            yield cycle[number % len(cycle)], f"{self.seed}:{number}"


class _Watched:
    """One worker process and the input it is busy with."""

    def __init__(self, jobs: Iterator[tuple[str, str]], folder: Path) -> None:
        self.jobs, self.folder = jobs, folder
        self.start()

    def start(self) -> None:
        self.connection, theirs = _context.Pipe(duplex=False)
        # A job is taken from the iterator on both sides, so that a new process goes on behind it.
        self.process = _context.Process(target=_child, args=(theirs, self.jobs, self.folder))
        self.process.start()
        theirs.close()
        self.job: tuple[str, str] | None = None
        self.began = self.began_processor = 0.0

    def receive(self) -> Outcome | None:
        """The next message: None for the announcement of an input, or an outcome."""
        message = self.connection.recv()
        if len(message) == 3:
            self.job_done = self.job
            self.job = None
            return message
        while next(self.jobs) != message:
            pass
        self.job, self.began = message, time.monotonic()
        self.began_processor = processor_seconds(self.process.pid or 0)
        return None

    def hangs(self) -> str | None:
        if self.job is None:
            return None
        busy = processor_seconds(self.process.pid or 0) - self.began_processor
        if busy > HANG_SECONDS:
            return f"hang: more than {HANG_SECONDS:.0f} seconds of processor time"
        if time.monotonic() - self.began > STUCK_SECONDS:
            return f"hang: waits for more than {STUCK_SECONDS:.0f} seconds"
        return None

    def stop(self) -> int | None:
        """Kill the process; its exit status."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def _child(connection: Connection, jobs: Iterator[tuple[str, str]], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run
    work(connection, jobs, folder / str(os.getpid()))


def run(
    plan: Plan, seconds: float, keep: Path, inputs: int | None = None
) -> tuple[dict[str, Count], list[Finding]]:
    """Try inputs for ``seconds``, or some ``inputs``; counts by kind and the findings.

    Some of each finding's like are saved in ``keep``.
    """
    counts = {name: Count() for name in plan.kinds}
    found: list[Finding] = []
    saved: dict[str, int] = {}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edgedb-fuzz-", dir=memory) as temporary:
        folder = Path(temporary)
        for name in plan.kinds:
            KINDS[name].prepare(folder)
        workers = [_Watched(plan.jobs(i), folder) for i in range(plan.workers)]
        started = time.monotonic()

        def record(job: tuple[str, str], what: str, detail: str) -> None:
            finding = Finding(*job, what, detail, input_of(*job))
            found.append(finding)
            counts[job[0]].findings += 1
            times = saved[finding.signature] = saved.get(finding.signature, 0) + 1
            if times <= _SAVED_PER_SIGNATURE:
                _say(f"{finding.signature} ({finding.save(keep)})")

        try:
            shown = started
            total = 0
            while time.monotonic() - started < seconds and (inputs is None or total < inputs):
                _turn(workers, counts, record)
                total = sum(c.inputs for c in counts.values())
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    _say(f"{shown - started:.0f} s: {total:,} inputs, {len(found)} findings")
        except KeyboardInterrupt:
            _say("interrupted")
        finally:
            unlimited()
            for worker in workers:
                worker.stop()
    return counts, found


def _turn(workers: list[_Watched], counts: dict[str, Count], record: Record) -> None:
    """Take what the workers have to say, then look after those that died or hang."""
    ready = wait([worker.connection for worker in workers], _POLL_SECONDS)
    for worker in workers:
        try:
            while worker.connection in ready and worker.connection.poll():
                outcome = worker.receive()
                if outcome is not None:
                    _count(counts, worker.job_done, outcome, record)
        except (EOFError, OSError):
            job, status = worker.job, worker.stop()
            if job:
                record(job, _death(status), "")
            else:
                _say(f"a worker died between inputs: {_death(status)}")
            worker.start()
            continue
        reason = worker.hangs()
        if reason and worker.job:
            job = worker.job
            worker.stop()
            record(job, reason, "")
            worker.start()


def _count(
    counts: dict[str, Count], job: tuple[str, str] | None, outcome: Outcome, record: Record
) -> None:
    assert job is not None
    what, detail, seconds = outcome
    tally = counts[job[0]]
    tally.slowest = max(tally.slowest, seconds)
    if what == "accepted":
        tally.accepted += 1
    elif what == "refused":
        tally.refused += 1
    else:
        record(job, what, detail)


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        return f"crash: {signal.Signals(-status).name}"
    return f"crash: exit status {status}"


def _say(line: str) -> None:
    print(f"fuzz: {line}", file=sys.stderr, flush=True)
