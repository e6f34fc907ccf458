"""Lines answered on a Ray cluster: one worker a machine, each with the model in its memory.

Workers get lines and give records; only the driver writes. A worker that dies is started again,
where it was or on a machine that is left, and its lines are answered again, with the same bits.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from ..display import quoted
from ..errors import EdgeDBError
from ..ops.cores import physical_cores
from .answering import Answering
from .batch import Opening
from .defaults import Defaults, identity
from .lines import Line, parse_line
from .records import Record

if TYPE_CHECKING:
    from types import ModuleType

_MOST_TASKS = 2000  # about; a task is some lines, which are lost together if their worker dies
_COLUMNS = ("number", "text", "failed", "tokens")
_REFUSED = -1  # the number of a record that says why a worker answers nothing


class Worker:
    """What a machine of the cluster runs. Its calls come from many threads at once."""

    def __init__(self, opening: Opening, defaults: Defaults, expected: dict[str, Any]) -> None:
        """What cannot be is said by the first call: Ray would try again what fails here."""
        self._refusal = ""
        try:
            model = opening.model(_threads())
            self._refusal = _difference(identity(model, defaults), expected)
            self._answer = Answering(model, defaults)
        except EdgeDBError as error:
            self._refusal = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Columns ``number`` and ``text`` of lines become those of their records."""
        if self._refusal:
            refused = Record(_REFUSED, f"{socket.gethostname()}: {self._refusal}", True)
            records = [refused] * len(batch["number"])
        else:
            rows = zip(batch["number"].tolist(), batch["text"].tolist(), strict=True)
            records = [self._answer(parse_line(*row), lambda: False) for row in rows]
        return {name: [getattr(record, name) for record in records] for name in _COLUMNS}


def _threads() -> int | None:
    """As many as the cluster gives this machine; None for as many as it has."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    cores = int(next(n["Resources"]["CPU"] for n in ray.nodes() if n["NodeID"] == node))
    return cores if cores < physical_cores() else None


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Why a worker's records would not be the run's, if they would not."""
    for name, value in expected.items():
        if found.get(name) != value:
            return f"{name} is {quoted(found.get(name))} there, and {quoted(value)} here"
    return ""


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """A connection to the cluster at ``address``; ``auto`` is one that runs on this machine.

    Raises ``EdgeDBError`` if Ray is missing or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what is worth a line, we say
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EdgeDBError(
            f"--ray needs Ray ({error.name} is missing): pip install 'ray[data]'"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EdgeDBError(
            f"no Ray cluster at {address} ({error}); start one with ray start --head"
        ) from None
    with redirect_stdout(_Nowhere()):  # where Ray prints what becomes of workers
        try:
            yield Cluster(ray)
        except ray.exceptions.RayError as error:
            raise EdgeDBError(
                f"the cluster gave up: {_cause(error)}; run again to go on from here"
            ) from None
        finally:
            ray.shutdown()


class Cluster:
    """A cluster that answers lines."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray

    def answer(
        self, lines: Sequence[Line], opening: Opening, defaults: Defaults, expected: dict[str, Any]
    ) -> Iterator[Record]:
        """Records as they are done. Lines are begun in their order."""
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        machines = self._count_machines()
        context.max_consecutive_actor_init_deaths = 2 * machines
        rows = [{"number": line.number, "text": line.text} for line in lines]
        each = -(-len(rows) // _MOST_TASKS)
        done = data.from_items(rows, override_num_blocks=-(-len(rows) // each)).map_batches(
            Worker,
            fn_constructor_args=(opening, defaults, expected),
            batch_size=each,
            num_cpus=1,  # not all: the worker of a machine that is gone needs room on another one
            compute=data.ActorPoolStrategy(
                size=machines,
                max_concurrent_calls_per_actor=opening.parallel,
                max_tasks_in_flight_per_actor=opening.parallel + 1,
                enable_true_multi_threading=True,
            ),
        )
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            columns = (batch[name].tolist() for name in _COLUMNS)
            for record in itertools.starmap(Record, zip(*columns, strict=True)):
                if record.number == _REFUSED:
                    raise EdgeDBError(record.text)
                yield record

    def _count_machines(self) -> int:
        """Of those that compute."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        found = sum(node["Resources"].get("CPU", 0) >= 1 for node in alive)
        if not found:
            raise EdgeDBError("no machine of the cluster has a core to give")
        return found


class _Nowhere(io.TextIOBase):
    """Takes what others write. Never closed: threads of Ray's may write later."""

    def write(self, text: str) -> int:
        return len(text)


def _cause(error: BaseException) -> str:
    """The last line of what a worker said; its traceback is in Ray's logs."""
    text = str(getattr(error, "cause", None) or error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
