"""Goes round the contestants of a case, again and again, and keeps every figure in a journal."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from edgedb.errors import EdgeDBError

from .cases import PAGES, READ, READ_SECONDS, Case, Contestant, Trial

Record = dict[str, Any]

# Cores that other processes may use during a measurement, or it is repeated: at most so often, and
# not after so many seconds.
QUIET = 0.1
REPEATS = 3
REPEAT_SECONDS = 8


class Worker:
    """A contestant's process; ``description`` is what it says about itself."""

    def __init__(self, contestant: Contestant, root: Path, cpus: Sequence[int]) -> None:
        self.contestant = contestant
        self._process = subprocess.Popen(
            contestant.command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), **contestant.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Threads that the engine starts may use the same processors on every side.
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        # What an engine logs must not fill its pipe and stop it.
        self._log: list[str] = []
        self._drain = threading.Thread(target=self._read_log, daemon=True)
        self._drain.start()
        self.description = self._reply()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer to a request (see ``worker.run``)."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone: the missing reply says so
        return self._reply()

    def cpu_seconds(self) -> float:
        """Processor time that the worker has used."""
        return cpu_seconds(self._process.pid)

    def rate(self, **request: Any) -> float:
        """Tokens (or bytes) a second."""
        answer = self.ask(**request)
        return float(answer["n"] / answer["elapsed"])

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._drain.join(1)
            last = "".join(self._log[-3:]).strip()
            raise EdgeDBError(f"the worker of {self.contestant.name} stopped: {last}")
        return dict(json.loads(line))

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log = [*self._log[-20:], line]


class Journal:
    """Every record of a run, one JSON line for all of a trial and round: what every contestant
    reached in it is there, or nothing.

    ``key`` says what was measured (commit, processor, options): a journal of another key is
    discarded.
    """

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if fresh or not lines or json.loads(lines[0]) != key:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(key) + "\n", encoding="utf-8")
            return
        self.records = [record for line in lines[1:] for record in json.loads(line)]

    def add(self, records: list[Record]) -> None:
        """Store the records of a trial in one round, or what contestants say of themselves."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(records) + "\n")
        self.records += records

    def rounds(self, model: str) -> int:
        """Rounds of a model of which something was measured."""
        return len({r["round"] for r in self.records if r["model"] == model and "round" in r})

    def has(self, model: str, trial: Trial, number: int) -> bool:
        """Whether a trial's round ``number`` was measured."""
        wanted = (model, trial.labels[-1], trial.threads, number)
        return any(
            wanted == (r["model"], r["test"], r["threads"], r["round"])
            for r in self.records
            if "round" in r
        )


def cpus_for(threads: int, available: Iterable[int] | None = None) -> list[int]:
    """The processors of a test: the first ones that this process may use."""
    found = sorted(os.sched_getaffinity(0) if available is None else available)
    return found[:threads]


def run_case(
    case: Case,
    journal: Journal,
    root: Path,
    rounds: int,
    *,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
) -> bool:
    """Measure until ``rounds`` rounds are in the journal; whether they are.

    What is there already is not measured again. No trial begins that would, by the length of the
    one before, end after ``deadline`` (monotonic seconds).
    """
    cells = case.cells(rounds)
    left = [cell for cell in cells if not journal.has(case.model, *cell)]
    if not left:
        return True
    with ExitStack() as stack:
        workers = []
        for contestant in case.contestants:
            progress(f"{case.model}: starting {contestant.name}")
            cpus = cpus_for(max(case.threads))
            worker = stack.enter_context(Worker(contestant, root, cpus))
            workers.append(worker)
            journal.add([{"model": case.model, "name": contestant.name, **worker.description}])
            _warm_up(case, worker)
        for i, (trial, number) in enumerate(left):
            started = time.monotonic()
            progress(
                f"{case.model}: {trial.label}, {trial.threads} threads, round {number + 1}; "
                f"{len(left) - i} to go"
            )
            found = measure(case, workers, trial, number)
            journal.add([{**record, "round": number} for record in found])
            now = time.monotonic()
            if now + (now - started) > deadline:
                return i + 1 == len(left)
    return True


def _warm_up(case: Case, worker: Worker) -> None:
    """Touch every weight and every buffer. Most threads first: pools start on all processors."""
    for threads in sorted(case.threads, reverse=True):
        for test in ("decode", "prompt"):
            n = 4 if test == "decode" else min(32, case.n_prompt)
            request: dict[str, Any] = {
                "test": test,
                "n": n,
                "seconds": 60,
                "warm": 0,
                "threads": threads,
            }
            if test in worker.contestant.tests:
                worker.ask(**request, cpus=cpus_for(threads))
        if worker.contestant.name == READ:
            for pages in PAGES:
                worker.ask(threads=threads, seconds=0.1, cpus=cpus_for(threads), pages=pages)


def measure(case: Case, workers: Sequence[Worker], trial: Trial, number: int) -> list[Record]:
    """A trial once; the order of the contestants turns from round to round.

    The memory's limit, with both kinds of pages, is read before and after each decoding, and stored
    with it as the mean.
    """
    reader = next((w for w in workers if w.contestant.name == READ), None)
    runners = [worker for worker in workers if worker is not reader]
    turn = number % len(runners)
    records: list[Record] = []
    cpus = cpus_for(trial.threads)
    decoding = trial.kind == "decode"
    request = {
        "test": trial.kind,
        "n": trial.n,
        "seconds": case.decode_seconds,
        "warm": 2 if decoding else 0,
        "threads": trial.threads,
        "cpus": cpus,
        "depth": trial.depth,
        "stops": [n for n, _ in trial.stops],
    }
    timed = reader if decoding else None
    before = _limits(timed, trial.threads, cpus)
    for worker in runners[turn:] + runners[:turn]:
        if trial.kind not in worker.contestant.tests:
            continue
        answer, others = _undisturbed(worker, request)
        after = _limits(timed, trial.threads, cpus)
        limits = {name: (before[name] + after[name]) / 2 for name in after}
        before = after
        counts = [n for n, _ in trial.stops] or [answer["n"]]
        seconds = answer["stops"] if trial.stops else [answer["elapsed"]]
        for label, n, elapsed in zip(trial.labels, counts, seconds, strict=True):
            record: Record = {"model": case.model, "name": worker.contestant.name}
            record |= {"test": label, "threads": trial.threads, "value": n / elapsed}
            records.append({**record, "others": others, **limits})
    return records


def _limits(reader: Worker | None, threads: int, cpus: Sequence[int]) -> dict[str, float]:
    """Bytes a second by the names that records have for them."""
    if reader is None:
        return {}
    request = {"threads": threads, "seconds": READ_SECONDS, "cpus": cpus}
    return {name: reader.rate(**request, pages=pages) for pages, name in PAGES.items()}


def _undisturbed(worker: Worker, request: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """A worker's answer, and the cores that other processes used meanwhile.

    Measured again if others used much: an engine that waits at barriers would suffer most.
    """
    found: list[tuple[dict[str, Any], float]] = []
    deadline = time.monotonic() + REPEAT_SECONDS
    while not found or (len(found) <= REPEATS and time.monotonic() < deadline):
        busy, own, started = _busy_seconds(), worker.cpu_seconds(), time.monotonic()
        answer = worker.ask(**request)
        elapsed = time.monotonic() - started
        used = _busy_seconds() - busy - (worker.cpu_seconds() - own)
        # Both clocks tick a hundred times a second.
        others = max(0.0, used - 0.03) / elapsed
        found.append((answer, others))
        if others <= QUIET:
            break
    return min(found, key=lambda pair: pair[1])


def _busy_seconds() -> float:
    """Processor time of all processes of this machine since its start."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
