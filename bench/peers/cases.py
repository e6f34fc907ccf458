"""What is compared: the models, the contestants for each, and how much each of them does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgedb.errors import EdgeDBError
from edgedb.measure.shapes import write_random
from edgedb.ops import library

READ = "plain read"
ONE_PAIR, AVX2_PAIR, TWO_PAIRS = "edgedb 1 pair", "edgedb 1 pair, AVX2", "edgedb 2 pairs"
NUMBA = "edgedb 1 pair, numba"
SMOLLM2, LLAMA_1B, LLAMA_7B = "SmolLM2-135M", "Llama 1.1B", "Llama-2 7B"
QWEN_06B, LLAMA_32, QWEN_4B = "Qwen3 0.6B", "Llama 3.2 1B", "Qwen3 4B"
GEMMA_1B, QWEN_30B = "Gemma 3 1B", "Qwen3 30B-A3B"
# Of 0.6 to 4 billion weights, in the shapes that people run.
SMALL = (QWEN_06B, GEMMA_1B, LLAMA_32, QWEN_4B)
READ_SECONDS = 0.25


def peer(weight_format: str) -> str:
    """The contestant that is llama.cpp with this format."""
    return f"llama.cpp {weight_format}"


@dataclass(frozen=True)
class Contestant:
    """A worker's command and the tests that it takes part in."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = ("decode", "prompt")


@dataclass(frozen=True)
class Case:
    """One model and those that run it; the first contestant is the read limit."""

    model: str
    contestants: tuple[Contestant, ...]
    n_prompt: int
    n_decode: int = 64
    decode_seconds: float = 2.5  # decoding ends here if its tokens take longer
    rounds: int = 7
    threads: tuple[int, ...] = (1, 2)
    alternate_prompts: bool = False  # a round reads prompts at one number of threads only

    def tests(self, number: int) -> list[tuple[str, int]]:
        """``(test, threads)`` of round ``number``."""
        prompts = self.threads
        if self.alternate_prompts:
            prompts = (self.threads[number % len(self.threads)],)
        return [("decode", n) for n in self.threads] + [("prompt", n) for n in prompts]


@dataclass(frozen=True)
class Paths:
    """Where things are; ``peers`` is the folder of the peers' environment and all made files."""

    root: Path
    peers: Path

    @property
    def peer_python(self) -> str:
        return str(self.peers / "venv" / "bin" / "python")

    def file(self, name: str) -> Path:
        return self.peers / name


# name -> (shape of edgedb.measure.shapes, llama.cpp's formats)
_RANDOM: dict[str, tuple[str, tuple[str, ...]]] = {
    QWEN_06B: ("qwen3-0.6b", ("TQ2_0", "Q4_0")),
    GEMMA_1B: ("gemma-3-1b", ("TQ2_0", "Q4_0")),
    LLAMA_32: ("llama-3.2-1b", ("TQ2_0", "Q4_0")),
    LLAMA_1B: ("llama-1.1b", ("TQ2_0", "Q2_K", "Q4_0")),
    QWEN_4B: ("qwen3-4b", ("TQ2_0", "Q4_0")),
    LLAMA_7B: ("llama-2-7b", ("TQ2_0", "Q2_K", "Q4_0")),
    QWEN_30B: ("qwen3-30b-a3b", ()),
}
_SMOLLM2_FORMATS = ("Q4_0", "Q8_0", "Q2_K", "TQ2_0")
MODELS = {
    "smollm2": SMOLLM2,
    "1.1b": LLAMA_1B,
    "7b": LLAMA_7B,
    **{_RANDOM[model][0]: model for model in (*SMALL, QWEN_30B)},
}
# Several of them by one name.
GROUPS = {"small": tuple(_RANDOM[model][0] for model in SMALL)}


def case(model: str, paths: Paths) -> Case:
    """The comparison for one of ``MODELS``' values, its files made if they are not there."""
    if model == SMOLLM2:
        ours = {
            1: paths.root / "models" / "smollm2-135m-instruct-db2.dbb",
            2: paths.root / "models" / "smollm2-135m-instruct.dbb",
        }
        theirs = {name: _requantized(name, paths) for name in _SMOLLM2_FORMATS}
        contestants = _contestants(ours, theirs, 544, paths, numba=True)
        return Case(model, contestants, 512, n_decode=128, rounds=10)
    from . import random_models

    shape, formats = _RANDOM[model]
    # Two pairs of the largest would leave no memory for the pages of one.
    ours = {n: paths.file(f"{shape}-{n}.dbb") for n in ((1,) if model == QWEN_30B else (1, 2))}
    theirs = {name: paths.file(f"{shape}-{name}.gguf") for name in formats}
    for pairs, path in ours.items():
        if not path.exists():
            _say(f"making {path.name}")
            write_random(path, shape, pairs)
    for name, path in theirs.items():
        if not path.exists():
            _say(f"making {path.name}")
            random_models.write_gguf(path, shape, name)
    contestants = _contestants(ours, theirs, 160, paths)
    if model in (LLAMA_7B, QWEN_30B):  # a prompt of llama.cpp's slowest format takes 20 seconds
        return Case(model, contestants, 128, rounds=6, alternate_prompts=True)
    return Case(model, contestants, 128, rounds=7)


def _requantized(weight_format: str, paths: Paths) -> Path:
    path = paths.file(f"smollm2-{weight_format}.gguf")
    if not path.exists():
        _say(f"making {path.name}")
        source = paths.root / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        module = "bench.peers.llama_cpp_quantize"
        command = [paths.peer_python, "-m", module, str(source), str(path), weight_format]
        done = subprocess.run(command, cwd=paths.root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EdgeDBError(f"cannot make {path.name}: {done.stderr.strip()[-200:]}")
    return path


def _contestants(
    ours: Mapping[int, Path],
    theirs: Mapping[str, Path],
    context: int,
    paths: Paths,
    numba: bool = False,
) -> tuple[Contestant, ...]:
    for path in [*ours.values(), *theirs.values()]:
        if not path.exists():
            raise EdgeDBError(f"{path} is not there; `make bench-peers` makes it")
    python = (sys.executable, "-m")
    size = ("--context", str(context))
    compiled = shared_library(Path(__file__).with_name("read_probe.c"), paths.peers)
    probe = (*python, "bench.peers.read_worker", str(compiled), str(ours[1]))
    edgedb = (*python, "bench.peers.edgedb_worker")
    found = [
        Contestant(READ, probe, tests=()),
        Contestant(ONE_PAIR, (*edgedb, str(ours[1]), *size)),
    ]
    if 2 in ours:
        found.append(Contestant(TWO_PAIRS, (*edgedb, str(ours[2]), *size)))
    if has_avx2_below_the_best():
        found.append(Contestant(AVX2_PAIR, (*edgedb, str(ours[1]), *size), {"EDGEDB_ISA": "avx2"}))
    if numba:
        command = (*edgedb, str(ours[1]), *size, "--backend", "numba")
        found.append(Contestant(NUMBA, command, tests=("decode",)))
    peers_python = (paths.peer_python, "-m", "bench.peers.llama_cpp_worker")
    found += [
        Contestant(peer(name), (*peers_python, str(path), *size)) for name, path in theirs.items()
    ]
    return tuple(found)


def has_avx2_below_the_best() -> bool:
    """Whether AVX2 runs here and something better does, too."""
    return "avx2" in [name for name, _, runs in library.instruction_sets() if runs][1:]


def shared_library(source: Path, folder: Path) -> Path:
    """A C file compiled for this CPU, in ``folder``."""
    library = folder / f"{source.stem}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CC", "cc")
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    return library


def _say(text: str) -> None:
    print(f"bench-peers: {text}", file=sys.stderr, flush=True)
