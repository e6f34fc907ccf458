"""What is compared: the models, the contestants for each, and how much each of them does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgedb.errors import EdgeDBError
from edgedb.measure.shapes import write_random
from edgedb.ops import library

READ = "plain read"
# What a plain read reads, and what records call its speed.
PAGES = {"file": "limit", "huge": "limit_huge"}
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
    tests: tuple[str, ...] = ("decode", "prompt", "rows")


@dataclass(frozen=True)
class Trial:
    """What a round asks of each contestant. ``kind``: ``decode`` n tokens one by one behind
    ``depth`` positions, read a ``prompt`` of n, or n ``rows`` at once over and over."""

    label: str
    kind: str
    n: int
    threads: int
    depth: int = 0
    # Of a prompt, if its beginnings have figures too: tokens of each, with its label.
    stops: tuple[tuple[int, str], ...] = ()
    most_rounds: int | None = None  # fewer than the case's, if it takes long

    @property
    def labels(self) -> tuple[str, ...]:
        """What its figures are called."""
        return tuple(label for _, label in self.stops) or (self.label,)


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
    plan: tuple[Trial, ...] = ()  # in place of decoding and prompts from an empty context
    one_by_one: bool = False  # all rounds of a trial before the next, which needs what it left

    def cells(self, rounds: int) -> list[tuple[Trial, int]]:
        """Trials and their rounds, in the order in which they are measured."""
        found = [(trial, n) for n in range(rounds) for trial in self.tests(n)]
        found = [(trial, n) for trial, n in found if n < (trial.most_rounds or rounds)]
        if self.one_by_one:
            found.sort(key=lambda cell: self.plan.index(cell[0]))
        return found

    def tests(self, number: int) -> list[Trial]:
        """What round ``number`` measures."""
        if self.plan:
            return list(self.plan)
        prompts = self.threads
        if self.alternate_prompts:
            prompts = (self.threads[number % len(self.threads)],)
        return [Trial("decode", "decode", self.n_decode, n) for n in self.threads] + [
            Trial("prompt", "prompt", self.n_prompt, n) for n in prompts
        ]


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
# Of one and of two pairs, in the folder of models.
SMOLLM2_FILES = {1: "smollm2-135m-instruct-db2.dbb", 2: "smollm2-135m-instruct.dbb"}
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
        ours = {pairs: paths.root / "models" / name for pairs, name in SMOLLM2_FILES.items()}
        theirs = {name: requantized(name, paths) for name in _SMOLLM2_FORMATS}
        contestants = _contestants(ours, theirs, 544, paths, numba=True)
        return Case(model, contestants, 512, n_decode=128, rounds=10)
    formats = _RANDOM[model][1]
    # Two pairs of the largest would leave no memory for the pages of one.
    pairs = (1,) if model == QWEN_30B else (1, 2)
    ours, theirs = random_files(model, pairs, formats, paths)
    contestants = _contestants(ours, theirs, 160, paths)
    if model in (LLAMA_7B, QWEN_30B):  # a prompt of llama.cpp's slowest format takes 20 seconds
        return Case(model, contestants, 128, rounds=6, alternate_prompts=True)
    return Case(model, contestants, 128, rounds=7)


def random_files(
    model: str, pairs: Iterable[int], formats: Iterable[str], paths: Paths
) -> tuple[dict[int, Path], dict[str, Path]]:
    """Files of random weights, ours by pairs and llama.cpp's by format; made if need be."""
    from . import random_models

    shape = _RANDOM[model][0]
    ours = {n: paths.file(f"{shape}-{n}.dbb") for n in pairs}
    theirs = {name: paths.file(f"{shape}-{name}.gguf") for name in formats}
    for n, path in ours.items():
        if not path.exists():
            _say(f"making {path.name}")
            write_random(path, shape, n)
    for name, path in theirs.items():
        if not path.exists():
            _say(f"making {path.name}")
            random_models.write_gguf(path, shape, name)
    return ours, theirs


def requantized(weight_format: str, paths: Paths) -> Path:
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
    size = ("--context", str(context))
    found = [plain_read(ours[1], paths), edgedb(ONE_PAIR, ours[1], *size)]
    if 2 in ours:
        found.append(edgedb(TWO_PAIRS, ours[2], *size))
    if has_avx2_below_the_best():
        found.append(edgedb(AVX2_PAIR, ours[1], *size, EDGEDB_ISA="avx2"))
    if numba:
        found.append(
            replace(edgedb(NUMBA, ours[1], *size, "--backend", "numba"), tests=("decode",))
        )
    found += [llama_cpp(peer(name), path, paths, *size) for name, path in theirs.items()]
    return tuple(found)


def edgedb(name: str, path: Path, *options: str, **env: str) -> Contestant:
    """edgedb with a model file; ``options`` are those of its worker."""
    command = (sys.executable, "-m", "bench.peers.edgedb_worker", str(_there(path)), *options)
    return Contestant(name, command, env)


def llama_cpp(name: str, path: Path, paths: Paths, *options: str) -> Contestant:
    """llama.cpp, likewise."""
    python = (paths.peer_python, "-m", "bench.peers.llama_cpp_worker")
    return Contestant(name, (*python, str(_there(path)), *options))


def plain_read(path: Path, paths: Paths) -> Contestant:
    """What reads a file's bytes and computes nothing."""
    probe = shared_library(Path(__file__).with_name("read_probe.c"), paths.peers)
    command = (sys.executable, "-m", "bench.peers.read_worker", str(probe), str(_there(path)))
    return Contestant(READ, command, tests=())


def _there(path: Path) -> Path:
    if not path.exists():
        raise EdgeDBError(f"{path} is not there; `make bench-peers` makes it")
    return path


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
