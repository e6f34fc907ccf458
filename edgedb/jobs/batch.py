"""A batch from its input to its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..run.engine import Model, load
from ..serve.memory import room_for
from .lines import Line, read_lines
from .order import in_order
from .records import Record, failure
from .results import Results


@dataclass(frozen=True)
class Opening:
    """How a model is opened, here or on another machine."""

    path: str
    parallel: int = 16  # lines at a time
    threads: int | None = None
    backend: str | None = None
    isa: str | None = None
    context: int | None = None
    kv_dtype: str = "float16"
    head: str = "full"
    memory: str = "auto"
    cache_tokens: int | None = None
    draft: str | None = None

    def model(self, threads: int | None = None) -> Model:
        """The model; with ``threads`` where nobody asked for another number of them."""
        return load(
            self.path,
            threads=self.threads or threads,
            backend=self.backend,
            isa=self.isa,
            context=self.context,
            kv_dtype=self.kv_dtype,
            head=self.head,
            memory=self.memory,
            cache_tokens=self.cache_tokens or room_for(self.parallel),
            draft=self.draft,
        )


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    lines: int
    failed: int
    answered: int  # now, not by a run before
    tokens: int  # that were written now
    seconds: float


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    lines: int
    done: int
    tokens: int  # written by this run
    seconds: float  # since it began


def run_batch(
    source: Path,
    out: Path,
    identity: Mapping[str, Any],
    answer: Callable[[Sequence[Line]], Iterator[Record]],
    *,
    overwrite: bool = False,
    progress: Callable[[Status], None] = lambda status: None,
) -> Summary:
    """Answer the lines of ``source`` into ``out``, or those that an interrupted run left.

    ``identity`` is what records depend on beside their lines; ``answer`` gives the records of some
    lines, all of which ask something, in any order. Raises ``EdgeDBError``; what was done by then
    stays for the next run.
    """
    lines = read_lines(source)
    by_number = {line.number: line for line in lines}
    started = time.perf_counter()
    tokens = 0
    with Results(out, identity, overwrite=overwrite) as results:
        left = in_order(results.left(lines))
        wrong = [failure(line, line.error) for line in left if line.error is not None]
        asked = [line for line in left if line.error is None]
        done = len(lines) - len(left)
        progress(Status(len(lines), done, 0, 0.0))
        for record in chain(wrong, answer(asked) if asked else ()):
            results.add(by_number[record.number], record)
            done += 1
            tokens += record.tokens
            progress(Status(len(lines), done, tokens, time.perf_counter() - started))
        failed = results.finish(lines)
    return Summary(len(lines), failed, len(left), tokens, time.perf_counter() - started)
