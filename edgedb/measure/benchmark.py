"""Throughput of a model file, or of a model shape with random weights made in memory.

``pp512`` is reading a prompt of 512 tokens at once, ``tg64`` is decoding 64 tokens one by one, both
from an empty cache, or behind ``depth`` positions: the terms of llama-bench. Every repetition is
timed on its own.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import __version__, arguments
from ..display import NAME_CHARS, one_line
from ..errors import EdgeDBError
from ..files import SOURCE_TREE
from ..format.tensors import linear_arrays
from ..model.dbb import read_dbb
from ..model.families import program_of
from ..model.network import Network
from ..model.residence import lies
from ..ops import Ops, create
from ..ops.cores import usable_cpus
from ..ops.sequences import MAX_ROWS
from .energy import Meter
from .shapes import Weights, bytes_per_token, random_weights, reaching, write_random

Row = TypeVar("Row", bound=Any)  # a dataclass
_COUNTS = arguments.each(arguments.whole(1), "a list of token counts")


@dataclass(frozen=True)
class BenchRow:
    """One measured figure: tokens a second over the repetitions."""

    model: str
    size_mb: float  # weights, 10^6 bytes
    bits_per_weight: float  # of the linear layers
    test: str  # pp<tokens> or tg<tokens>, behind positions @d<depth>
    threads: int
    backend: str
    isa: str
    kernel: str  # of the pairs; empty where the backend has only one way
    mean: float  # tokens a second
    deviation: float
    gb_per_second: float  # weights read a second while decoding; 0 for prompts
    memory: str  # where the weights lie, and how much of that is in huge pages
    repetitions: list[float] = field(default_factory=list)
    joules: float | None = None  # a token, of all sockets; None where it was not measured


@dataclass(frozen=True)
class Machine:
    """Where the figures were measured."""

    cpu: str
    cores: int
    system: str
    python: str
    version: str
    commit: str

    @classmethod
    def here(cls) -> Machine:
        """This machine and this build."""
        return cls(
            cpu=_cpu_name(),
            cores=usable_cpus(),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            version=__version__,
            commit=_commit(),
        )


class Decoder:
    """A model on a backend that reads random tokens; nothing is sampled."""

    def __init__(self, weights: Weights, ops: Ops, context: int, kv_dtype: str = "float16") -> None:
        config = weights.config
        self.ops = ops
        self._network = Network(config, weights.linears, weights.vectors, ops, context)
        self._cache, self._state = self._network.cache(context, kv_dtype), self._network.state()
        draw = np.random.Generator(np.random.PCG64(1))
        self._tokens = [int(t) for t in draw.integers(config.vocab_size, size=context)]

    def reset(self, depth: int = 0) -> None:
        """Forget all tokens behind the first ``depth``, which are read if they were not."""
        self._cache.truncate(min(depth, self._cache.length))
        if self._cache.length < depth:
            self.read_prompt(depth - self._cache.length)

    def read_prompt(self, n: int) -> None:
        """Read ``n`` tokens together; logits of the last one."""
        start, end = self._cache.length, self._cache.length + n
        for first in range(start, end, MAX_ROWS):
            batch = self._tokens[first : min(first + MAX_ROWS, end)]
            last = first + MAX_ROWS >= end
            self._network.forward(batch, self._cache, self._state, logits="last" if last else None)

    def decode(self, n: int) -> None:
        """Read ``n`` tokens one by one, with the logits of each."""
        for i in range(self._cache.length, self._cache.length + n):
            self._network.forward(self._tokens[i : i + 1], self._cache, self._state)


def run(
    model: str | os.PathLike[str] | None,
    *,
    shape: str | None = None,
    pairs: float = 1,
    file: str | os.PathLike[str] | None = None,
    memory: str = "auto",
    prompt: Sequence[int] = (128, 512),
    decode: Sequence[int] = (64, 128),
    depth: int = 0,
    kv_dtype: str = "float16",
    repetitions: int = 5,
    threads: Sequence[int] = (),
    backend: str | None = None,
    isa: str | None = None,
    all_kernels: bool = False,
    meter: Meter | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[BenchRow]:
    """Measure every test at every thread count (default: the backend's own).

    Give either ``model`` (a ``.dbb``) or ``shape`` (a key of ``SHAPES``), whose random weights are
    made in memory, or in ``file``, where they are read from and stay. A file is mapped or copied as
    ``memory`` says, one of ``residence.MEMORIES``. Every test runs behind
    ``depth`` positions, which a cache of ``kv_dtype`` holds. With ``all_kernels``, decoding is also
    measured with the other kernels of the instruction set, unless EDGEDB_KERNEL forces one; not
    behind positions, which each would have to read again. With a ``meter`` rows say what energy a
    token took.
    """
    if (model is None) == (shape is None):
        raise EdgeDBError("give either a model file or --shape")
    repetitions = arguments.whole(1)("repetitions", repetitions)
    prompt, decode, threads = _COUNTS("prompt", prompt), _COUNTS("decode", decode), tuple(threads)
    if shape is not None and file is None:
        name, weights, where = shape, random_weights(shape, pairs), "made"
    else:
        if shape is not None:
            assert file is not None
            model = write_random(file, shape, pairs)
        assert model is not None
        opened = read_dbb(model, memory=memory)
        name, where = shape or one_line(Path(model).stem, NAME_CHARS), opened.memory
        weights = Weights(opened.config, opened.linears, opened.vectors)
    depth = arguments.whole(0)("depth", depth)
    longest = depth + max([*prompt, *decode], default=1)
    if shape is not None:
        weights = reaching(weights, longest)
    if longest > weights.config.max_position_embeddings:
        raise EdgeDBError(
            f"{longest} tokens do not fit: this model takes "
            f"{weights.config.max_position_embeddings} positions"
        )
    rows = []
    for count in threads or (None,):
        ops = create(backend, isa, count)
        measured = [(ops, prompt)]
        if all_kernels and not depth:
            measured += [(other, ()) for other in _other_kernels(ops)]
        for chosen, lengths in measured:
            decoder = Decoder(weights, chosen, max(longest, 8), kv_dtype)
            tests = _tests(decoder, lengths, decode)
            for row in _measure(name, where, weights, decoder, tests, depth, repetitions, meter):
                if progress is not None:
                    how = f"{row.threads} threads, {row.kernel or row.backend}"
                    progress(f"{row.test} at {how}: {row.mean:.1f} tokens/s")
                rows.append(row)
    return rows


def _other_kernels(ops: Ops) -> Iterator[Ops]:
    """The same backend, instruction set and threads with each kernel that ``ops`` does not use."""
    if ops.name != "native" or os.environ.get("EDGEDB_KERNEL"):
        return
    from ..ops import library

    for kernel in library.kernels(ops.isa):
        if kernel != ops.kernel:
            yield create(ops.name, ops.isa, ops.threads, kernel)


_Test = tuple[str, int, Callable[[int], None]]


def _tests(decoder: Decoder, prompt: Sequence[int], decode: Sequence[int]) -> list[_Test]:
    tests: list[_Test] = [(f"pp{n}", n, decoder.read_prompt) for n in prompt]
    return tests + [(f"tg{n}", n, decoder.decode) for n in decode]


def _measure(
    name: str,
    where: str,
    weights: Weights,
    decoder: Decoder,
    tests: Sequence[_Test],
    depth: int,
    repetitions: int,
    meter: Meter | None,
) -> Iterator[BenchRow]:
    ops = decoder.ops
    linears = [t for key, t in weights.linears.items() if key.startswith("layers.")]
    arrays = [array for t in weights.linears.values() for array in linear_arrays(t)]
    sizes = program_of(weights.config).sizes()
    n_weights = sum(size for key, size in sizes.items() if key.startswith("layers."))
    for test, n, body in tests:
        speeds, joules = [], 0.0
        for repetition in range(-1, repetitions):  # the first one warms caches and is not counted
            decoder.reset(depth)
            if meter is not None:
                meter.joules()  # what came before is nobody's
            started = time.perf_counter()
            body(n)
            seconds = time.perf_counter() - started
            if repetition >= 0:
                speeds.append(n / seconds)
                joules += meter.joules() if meter is not None else 0.0
        mean = statistics.fmean(speeds)
        yield BenchRow(
            model=name,
            size_mb=sum(t.nbytes for t in weights.linears.values()) / 1e6,
            bits_per_weight=8 * sum(t.nbytes for t in linears) / n_weights,
            test=f"{test}@d{depth}" if depth else test,
            threads=ops.threads,
            backend=ops.name,
            isa=ops.isa,
            kernel=ops.kernel,
            mean=mean,
            deviation=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
            gb_per_second=bytes_per_token(weights) * mean / 1e9 if test.startswith("tg") else 0.0,
            memory=lies(where, arrays),
            repetitions=speeds,
            joules=None if meter is None else joules / (n * repetitions),
        )


ENERGY = "mJ/token"  # a column that is there when a row has something in it
COLUMNS: dict[str, Callable[[BenchRow], str]] = {
    "model": lambda r: r.model.replace("|", "\\|"),
    "MB": lambda r: f"{r.size_mb:.0f}",
    "bits/weight": lambda r: f"{r.bits_per_weight:.2f}",
    "backend": lambda r: r.backend,
    "isa": lambda r: r.isa,
    "kernel": lambda r: r.kernel,
    "threads": lambda r: str(r.threads),
    "test": lambda r: r.test,
    "tokens/s": lambda r: f"{r.mean:.1f} ± {r.deviation:.1f}",
    "GB/s": lambda r: f"{r.gb_per_second:.1f}" if r.gb_per_second else "",
    "memory": lambda r: r.memory,
    ENERGY: lambda r: f"{1e3 * r.joules:.1f}" if r.joules is not None else "",
}


def report(
    rows: Sequence[Row], output: str = "md", columns: Mapping[str, Callable[[Row], str]] = COLUMNS
) -> str:
    """Rows as ``md`` (a table of ``columns`` under a line on the machine), ``csv``, ``json``."""
    machine = Machine.here()
    if output == "json":
        return json.dumps({"machine": asdict(machine), "rows": [asdict(r) for r in rows]}, indent=2)
    if output == "csv":
        records = [
            {**{k: v for k, v in asdict(r).items() if not isinstance(v, list)}, **asdict(machine)}
            for r in rows
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().rstrip("\n")
    arguments.choice("md", "csv", "json")("output", output)
    columns = {k: cell for k, cell in columns.items() if k != ENERGY or any(map(cell, rows))}
    lines = [
        f"{machine.cpu}, {machine.cores} cores, {machine.system}; "
        f"edgedb {machine.version}, commit {machine.commit}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or platform.machine()
    if "cpu family" in fields:  # cloud CPUs share one marketing name over several cores
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def _commit() -> str:
    """Commit of the source tree the package runs from, with ``-dirty``; ``release`` outside one."""
    if not (SOURCE_TREE / ".git").exists():
        return "release"
    try:
        result = subprocess.run(
            ["git", "-C", str(SOURCE_TREE), "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
