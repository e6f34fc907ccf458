"""Throughput of a model file, or of a model shape with random weights made in memory.

``pp512`` is reading a prompt of 512 tokens at once, ``tg64`` is decoding 64 tokens one by one, both
from an empty cache: the terms of llama-bench. Every repetition is timed on its own.
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
from typing import Any

import numpy as np

from .. import __version__, arguments
from ..display import NAME_CHARS, one_line
from ..errors import EdgeDBError
from ..files import SOURCE_TREE
from ..format.packing import pack_int8, quantize_int8
from ..format.tensors import (
    BLOCK_BYTES,
    HALF_BYTES,
    MAX_PLANES,
    TILE,
    DenseTensor,
    Experts,
    Weight,
    linear_of,
    planes_of,
    tile_grid,
)
from ..model.config import ModelConfig
from ..model.dbb import read_dbb
from ..model.families import program_of
from ..model.network import Network
from ..ops import Ops, create
from ..ops.cores import usable_cpus
from ..ops.sequences import MAX_ROWS

SHAPES = {
    "llama-2-7b": ModelConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 4096),
    "llama-1.1b": ModelConfig("llama", 32000, 2048, 5632, 22, 32, 4, 64, 2048),
    "smollm2-135m": ModelConfig(
        "llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, rope_theta=1e5, tie_word_embeddings=True
    ),
}


_COUNTS = arguments.each(arguments.whole(1), "a list of token counts")


@dataclass(frozen=True)
class BenchRow:
    """One measured figure: tokens a second over the repetitions."""

    model: str
    size_mb: float  # weights, 10^6 bytes
    bits_per_weight: float  # of the linear layers
    test: str  # pp<tokens> or tg<tokens>
    threads: int
    backend: str
    isa: str
    kernel: str  # of the pairs; empty where the backend has only one way
    mean: float  # tokens a second
    deviation: float
    gb_per_second: float  # weights read a second while decoding; 0 for prompts
    repetitions: list[float] = field(default_factory=list)


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


@dataclass(frozen=True)
class Weights:
    """What a forward pass needs of a model; a ``DbbFile`` has the same three."""

    config: ModelConfig
    linears: Mapping[str, Weight]
    vectors: Mapping[str, np.ndarray]


_PLANES = arguments.rule(f"1 to {MAX_PLANES // 2} in steps of a half", planes_of)


def random_weights(shape: str, pairs: float = 1, seed: int = 0) -> Weights:
    """A model of a known shape with random planes and codes; int8 embedding and head.

    Random bytes cost the kernels what real ones cost: nothing skips or branches on values.
    """
    shape = arguments.choice(*SHAPES)("shape", shape)
    n, half = divmod(_PLANES("pairs", pairs), 2)
    config = SHAPES[shape]
    rng = np.random.Generator(np.random.PCG64(seed))
    program = program_of(config)
    stacks = program.stacks()
    linears: dict[str, Weight] = {}
    for name, (rows, cols) in program.matrices().items():
        if name in program.tables():
            weight = rng.standard_normal((rows, cols), np.float32)
            linears[name] = pack_int8(*quantize_int8(weight))
            continue
        if name.endswith(".router"):
            weight = rng.standard_normal((rows, cols), np.float32) / np.float32(cols**0.5)
            linears[name] = DenseTensor(weight.astype(np.float16))
            continue
        count = (stacks[name],) if name in stacks else ()
        grid = tile_grid(rows, cols)
        blocks = _random_blocks((*count, n, *grid, BLOCK_BYTES), 2, rng)
        # Outputs near 1 for inputs near 1, so that no layer overflows.
        row_scale = np.full((*count, n + half, rows), 1 / (64 * cols**0.5), np.float32)
        arrays = [blocks, row_scale]
        if half:
            arrays.append(_random_blocks((*count, *grid, HALF_BYTES), 1, rng))
        if count:
            linears[name] = Experts(tuple(arrays), rows, cols, 2 * n + half)
        else:
            linears[name] = linear_of(arrays, rows, cols, 2 * n + half)
    vectors = {
        name: np.ones(size, np.float32) for name, size in program_of(config).vectors().items()
    }
    return Weights(config, linears, vectors)


def _random_blocks(shape: tuple[int, ...], n_codes: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes, of which the last ``64 * n_codes`` of a block are valid codes."""
    blocks = rng.integers(0, 256, shape, np.uint8)
    codes = blocks[..., -TILE * n_codes :].view(np.int8)
    np.maximum(codes // 2, -63, out=codes)  # keeps c1 + c2 in -127..127
    return blocks


def bytes_per_token(weights: Weights) -> int:
    """Bytes of weights that decoding one token reads: all but the input embedding's other rows, and
    of experts those of the chosen."""
    config = weights.config
    head = "embedding" if config.tie_word_embeddings else "head"
    layers = sum(
        config.experts_per_token * w.expert_bytes if isinstance(w, Experts) else w.nbytes
        for name, w in weights.linears.items()
        if name.startswith("layers.")
    )
    return layers + weights.linears[head].nbytes


class Decoder:
    """A model on a backend that reads random tokens; nothing is sampled."""

    def __init__(self, weights: Weights, ops: Ops, context: int) -> None:
        config = weights.config
        self.ops = ops
        self._network = Network(config, weights.linears, weights.vectors, ops, context)
        self._cache, self._state = self._network.cache(context), self._network.state()
        draw = np.random.Generator(np.random.PCG64(1))
        self._tokens = [int(t) for t in draw.integers(config.vocab_size, size=context)]

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache.truncate(0)

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
    prompt: Sequence[int] = (128, 512),
    decode: Sequence[int] = (64, 128),
    repetitions: int = 5,
    threads: Sequence[int] = (),
    backend: str | None = None,
    isa: str | None = None,
    all_kernels: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[BenchRow]:
    """Measure every test at every thread count (default: the backend's own).

    Give either ``model`` (a ``.dbb``) or ``shape`` (a key of ``SHAPES``). With ``all_kernels``,
    decoding is also measured with the other kernels of the instruction set, unless EDGEDB_KERNEL
    forces one.
    """
    if (model is None) == (shape is None):
        raise EdgeDBError("give either a model file or --shape")
    repetitions = arguments.whole(1)("repetitions", repetitions)
    prompt, decode, threads = _COUNTS("prompt", prompt), _COUNTS("decode", decode), tuple(threads)
    if shape is not None:
        name, weights = shape, random_weights(shape, pairs)
    else:
        assert model is not None
        file = read_dbb(model)
        name = one_line(Path(model).stem, NAME_CHARS)
        weights = Weights(file.config, file.linears, file.vectors)
    longest = max([*prompt, *decode], default=1)
    if longest > weights.config.max_position_embeddings:
        raise EdgeDBError(
            f"{longest} tokens do not fit: this model takes "
            f"{weights.config.max_position_embeddings} positions"
        )
    rows = []
    for count in threads or (None,):
        ops = create(backend, isa, count)
        measured = [(ops, prompt)]
        if all_kernels:
            measured += [(other, ()) for other in _other_kernels(ops)]
        for chosen, lengths in measured:
            for row in _measure(name, weights, chosen, lengths, decode, repetitions):
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


def _measure(
    name: str,
    weights: Weights,
    ops: Ops,
    prompt: Sequence[int],
    decode: Sequence[int],
    repetitions: int,
) -> Iterator[BenchRow]:
    decoder = Decoder(weights, ops, max([*prompt, *decode, 8]))
    linears = [t for key, t in weights.linears.items() if key.startswith("layers.")]
    n_weights = sum(t.rows * t.cols for t in linears)
    tests = [(f"pp{n}", n, decoder.read_prompt) for n in prompt]
    tests += [(f"tg{n}", n, decoder.decode) for n in decode]
    for test, n, body in tests:
        speeds = []
        for repetition in range(-1, repetitions):  # the first one warms caches and is not counted
            decoder.reset()
            started = time.perf_counter()
            body(n)
            seconds = time.perf_counter() - started
            if repetition >= 0:
                speeds.append(n / seconds)
        mean = statistics.fmean(speeds)
        yield BenchRow(
            model=name,
            size_mb=sum(t.nbytes for t in weights.linears.values()) / 1e6,
            bits_per_weight=8 * sum(t.nbytes for t in linears) / n_weights,
            test=test,
            threads=ops.threads,
            backend=ops.name,
            isa=ops.isa,
            kernel=ops.kernel,
            mean=mean,
            deviation=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
            gb_per_second=bytes_per_token(weights) * mean / 1e9 if test.startswith("tg") else 0.0,
            repetitions=speeds,
        )


_COLUMNS: dict[str, Callable[[BenchRow], str]] = {
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
}


def report(rows: Sequence[BenchRow], output: str = "md") -> str:
    """Rows as ``md`` (a table under one line on the machine), ``csv`` or ``json``."""
    machine = Machine.here()
    if output == "json":
        return json.dumps({"machine": asdict(machine), "rows": [asdict(r) for r in rows]}, indent=2)
    if output == "csv":
        records = [
            {**{k: v for k, v in asdict(r).items() if k != "repetitions"}, **asdict(machine)}
            for r in rows
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().rstrip("\n")
    arguments.choice("md", "csv", "json")("output", output)
    lines = [
        f"{machine.cpu}, {machine.cores} cores, {machine.system}; "
        f"edgedb {machine.version}, commit {machine.commit}",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    lines += ["| " + " | ".join(cell(row) for cell in _COLUMNS.values()) + " |" for row in rows]
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
