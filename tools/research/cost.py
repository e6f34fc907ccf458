"""Question 6: does the operation count become time, and energy?

Every kernel reads the same model in turns, so that what else the machine does falls on all alike;
what is compared are medians of ratios within a round. "float32" is the same matrices in full
precision, multiplied by the BLAS of numpy; "skipping" goes from set bit to set bit.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from edgedb.errors import EdgeDBError
from edgedb.format.packing import dequantize
from edgedb.format.tensors import GROUP, PairTensor
from edgedb.measure.benchmark import Decoder, Machine
from edgedb.measure.energy import Meter, find
from edgedb.measure.shapes import Weights
from edgedb.model.dbb import DbbFile, read_dbb
from edgedb.ops import create, library

from ..command import say
from ..operations import report
from .results import Results

COUNTED_TOKENS = 32  # as in the paper


@dataclass(frozen=True)
class Way:
    """How the matrices of a model are multiplied; ``decode`` and ``prompt`` read so many tokens,
    and ``prompt`` is None where a way has none of its own."""

    name: str
    decode: Callable[[int], None]
    prompt: Callable[[int], None] | None


def run(path: Path, results: Results, decode: int, prompt: int, rounds: int) -> None:
    """Measure what ``results`` lacks of a model."""
    counted = f"cost/operations/{path.name}"
    if counted not in results:
        results.add({"key": counted, "kind": "operations", **report(path, COUNTED_TOKENS)})
    key = f"cost/time/{path.name}/{decode}+{prompt}"
    if key in results:
        return
    meter, why = meter_or_reason()
    file = read_dbb(path)
    with threadpool_limits(1):
        found = measured(ways(file, max(decode, prompt)), decode, prompt, rounds, meter)
    record = {
        "key": key, "kind": "time", "model": path.name, "decode": decode, "prompt": prompt,
        "threads": 1, "rounds": rounds, "energy": why, "machine": asdict(Machine.here()),
        "load": os.getloadavg()[0], "ways": found,
    }  # fmt: skip
    results.add(record)
    for name, of in found.items():
        say(f"{name}: {of['decode_ms']:.2f} ms a token" + _beside(of))


def _beside(of: dict[str, Any]) -> str:
    return f", {of['prompt_ms']:.3f} in a prompt" if of["prompt_ms"] else ""


def meter_or_reason() -> tuple[Meter | None, str]:
    """RAPL's counters, or why there are none."""
    try:
        return find(), "by RAPL, of the whole socket"
    except EdgeDBError as error:
        return None, str(error)


def ways(file: DbbFile, context: int) -> list[Way]:
    """Every kernel of every instruction set that runs here, full precision, and skipping."""
    weights = Weights(file.config, file.linears, file.vectors)
    found = []
    for isa, _, runs in library.instruction_sets():
        for kernel in library.kernels(isa) if runs else ():
            decoder = Decoder(weights, create("native", isa, 1, kernel), context)
            found.append(Way(f"{isa} {kernel}", *_fresh(decoder)))
    return [*found, full_precision(file), skipping(file)]


def _fresh(decoder: Decoder) -> tuple[Callable[[int], None], Callable[[int], None]]:
    def begin(read: Callable[[int], None]) -> Callable[[int], None]:
        def test(n: int) -> None:
            decoder.reset()
            read(n)

        return test

    return begin(decoder.decode), begin(decoder.read_prompt)


def full_precision(file: DbbFile) -> Way:
    """Matrices inside the layers, and nothing else of the model, in float32: less than a pass, so
    that what it is slower by is no overhead of ours."""
    matrices = [dequantize(t) for name, t in file.linears.items() if name.startswith("layers.")]
    draw = np.random.default_rng(0)
    inputs = {n: draw.normal(size=(n, 1 << 14)).astype(np.float32) for n in (1, 512)}

    def tokens(n: int) -> None:
        x = inputs[1] if n == 1 else inputs[512]
        for matrix in matrices:
            np.ascontiguousarray(x[:n, : matrix.shape[1]]) @ matrix.T

    def decode(n: int) -> None:
        for _ in range(n):
            tokens(1)

    return Way("float32", decode, tokens)


def skipping(file: DbbFile) -> Way:
    """The same matrices from set bit to set bit; one pass, scaled to ``n`` tokens by the caller's
    own count of them."""
    from .skipping import multiply, words

    tensors = [t for n, t in file.linears.items() if n.startswith("layers.")]
    parts = [(*words(t), t.row_scale, t) for t in tensors if isinstance(t, PairTensor)]
    draw = np.random.default_rng(0)
    q = draw.integers(-127, 128, 1 << 14).astype(np.int64)
    sx = np.ones((1 << 14) // GROUP, np.float32)

    def decode(n: int) -> None:
        for _ in range(n):
            for planes, codes, row_scale, tensor in parts:
                multiply(planes, codes, row_scale, q, sx, np.empty(tensor.rows, np.float32))

    decode(1)  # compiled
    return Way("skipping", decode, None)


def measured(
    all_ways: list[Way], decode: int, prompt: int, rounds: int, meter: Meter | None
) -> dict[str, dict[str, Any]]:
    """Medians over rounds: milliseconds a token, the ratio to the first way in the same round, and
    millijoules a token where there is a meter."""
    # Of decoding and of prompts, a figure a round; none where a way has no prompts of its own.
    seconds: dict[str, tuple[list[float], list[float]]] = {w.name: ([], []) for w in all_ways}
    joules: dict[str, tuple[list[float], list[float]]] = {w.name: ([], []) for w in all_ways}
    most = {way.name: 1 for way in all_ways}  # tokens of one test, where many would take minutes
    for turn in range(-1, rounds):  # the first warms caches, and shows what is slow
        for way in all_ways:
            tests = ((way.decode, min(decode, most[way.name])), (way.prompt, prompt))
            for which, (read, n) in enumerate(tests):
                if read is None:
                    continue
                if meter is not None:
                    meter.joules()  # what came before is nobody's
                begun = time.perf_counter()
                read(n)
                took = (time.perf_counter() - begun) / n
                if turn >= 0:
                    seconds[way.name][which].append(took)
                    if meter is not None:
                        joules[way.name][which].append(meter.joules() / n)
                elif read is way.decode:
                    most[way.name] = max(1, int(1.0 / took))
    first = seconds[all_ways[0].name]

    def median(of: list[float], scale: float = 1.0) -> float | None:
        return scale * statistics.median(of) if of else None

    found = {}
    for way in all_ways:
        (decoded, prompted), spent = seconds[way.name], joules[way.name]
        ratios = [a / b for a, b in zip(decoded, first[0], strict=True)]
        found[way.name] = {
            "decode_ms": median(decoded, 1e3),
            "prompt_ms": median(prompted, 1e3),
            "decode_ratio": median(ratios),
            "prompt_ratio": median([a / b for a, b in zip(prompted, first[1], strict=False)]),
            "decode_ratios": ratios,
            "decode_mj": median(spent[0], 1e3),
            "prompt_mj": median(spent[1], 1e3),
        }
    return found
