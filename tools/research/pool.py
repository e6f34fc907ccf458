"""Jobs side by side: a small model leaves most of a GPU idle, so many processes share each.

Workers do one job after the other and send back its record; what a job needs comes before it, the
order is otherwise that of the list, and at the end of the time whatever still runs is given up.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from ..command import say
from .jobs import Job, Size
from .results import Results
from .students import Laboratory


@dataclass
class Worker:
    """A process with a device of its own or a share of one; ``job`` is what it does now."""

    process: Any
    pipe: Connection
    device: str
    job: Job | None = None


def work(pipe: Connection, corpus: Path, folder: Path, size: Size, device: str) -> None:
    """Do the jobs that come, until the pipe is closed; a record or what went wrong for each."""
    torch.set_float32_matmul_precision("high")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    laboratory = Laboratory(corpus, folder, size, torch.device(device))
    with suppress(EOFError, OSError):  # there is nobody who asks any more
        while True:
            job = pipe.recv()
            try:
                pipe.send(laboratory.do(job))
            except Exception:  # what one job dies of is no reason for the others to
                pipe.send(traceback.format_exc())


def run(
    jobs: Sequence[Job],
    results: Results,
    corpus: Path,
    folder: Path,
    size: Size,
    devices: Sequence[str],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Do the jobs that ``results`` lacks, one at a time on each of ``devices``, which may be named
    several times; keys of those that failed or were given up after ``seconds``.
    """
    begun = clock()
    done = {record["key"] for record in results.read()}
    waiting = _to_do(jobs, done, folder, size)
    failed: list[str] = []
    workers = [_start(corpus, folder, size, device) for device in devices[: len(waiting)]]
    try:
        while (left := seconds - (clock() - begun)) > 0:
            for worker in workers:
                ready = worker.job is None and _next(waiting, done, folder, size)
                if ready:
                    waiting.remove(ready)
                    worker.job = ready
                    worker.pipe.send(ready)
            busy = [worker for worker in workers if worker.job]
            if not busy:
                break
            for pipe in wait([worker.pipe for worker in busy], timeout=min(left, 60.0)):
                worker = next(w for w in busy if w.pipe is pipe)
                job, worker.job = worker.job, None
                assert job is not None
                found = _received(worker)
                if isinstance(found, dict):
                    if job.key not in results:
                        results.add({**found, "at": round(clock() - begun, 1)})
                    done.add(job.key)
                    say(f"{clock() - begun:6.1f} s  {job.key}: {found['seconds']} s")
                else:
                    failed.append(job.key)
                    print(f"{job.key} failed on {worker.device}:\n{found}", flush=True)
                    # What a failure leaves behind on a GPU would be the next job's.
                    _end(worker)
                    workers[workers.index(worker)] = _start(corpus, folder, size, worker.device)
    finally:
        for worker in workers:
            _end(worker)
    return failed + [job.key for job in waiting] + [w.job.key for w in workers if w.job]


def _start(corpus: Path, folder: Path, size: Size, device: str) -> Worker:
    context = multiprocessing.get_context("spawn")  # CUDA survives no fork
    mine, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, corpus, folder, size, device))
    process.start()
    theirs.close()
    return Worker(process, mine, device)


def _end(worker: Worker) -> None:
    """At once: a training that is asked to end saves first, and what is saved is always whole."""
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _received(worker: Worker) -> dict[str, Any] | str:
    try:
        found: dict[str, Any] | str = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return f"the process ended with {worker.process.exitcode}"
    return found


def _to_do(jobs: Sequence[Job], done: set[str], folder: Path, size: Size) -> list[Job]:
    """Jobs without a record, and those whose weights they need and are not there any more."""
    found: list[Job] = []
    wanted: set[str] = set()
    for job in reversed(jobs):  # whoever needs one comes behind it
        if job.key not in done or (job.key in wanted and not (folder / job.file).exists()):
            found.append(job)
            wanted |= {need.key for need in job.needs(size)}
    return found[::-1]


def _next(waiting: Sequence[Job], done: set[str], folder: Path, size: Size) -> Job | None:
    """The first job whose needs are met."""
    for job in waiting:
        needs = job.needs(size)
        if all(need.key in done and (folder / need.file).exists() for need in needs):
            return job
    return None
