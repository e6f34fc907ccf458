"""Decode speed of what was measured for its quality, both engines in turns (``bench.peers``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.peers.cases import Case, Contestant, Paths, has_avx2_below_the_best, peer
from bench.peers.results import Key, Results, Spread
from bench.peers.runner import Journal, run_case
from edgedb.errors import EdgeDBError

from .llama_cpp import FAIR, KIND, REAL, Format, LlamaCpp
from .ours import LAYER_BITS, Ours
from .rows import Row
from .teachers import run

# Rows of 768, so that llama.cpp's formats in blocks of 256 are what runs, and of the real 576.
WIDE, SMOLLM2 = "SmolLM2-135M, rows of 768", "SmolLM2-135M"
DEFAULT, DEFAULT_AVX2 = "edgedb default", "edgedb default, AVX2"
CONTEXT, TOKENS, ROUNDS = 160, 96, 7
THREADS = (1, 2)


class Race:
    """The two comparisons, their files made where they are not there."""

    def __init__(self, paths: Paths, llama_cpp: LlamaCpp, ours: Ours) -> None:
        self.paths, self.llama_cpp, self.ours = paths, llama_cpp, ours

    def wide(self) -> Case:
        """Every row of the table, in one shape. Ours have the planes of their plans; what is in
        them does not matter to a kernel, so rounding fills them."""
        found = [self._edgedb(f"edgedb {bits:g}", self._rounded(bits)) for bits in LAYER_BITS]
        found += [self._peer(Format(name, True)) for name, _ in FAIR]
        return _case(WIDE, found)

    def real(self, default: Path) -> Case:
        """The default model, and what a person has of llama.cpp who quantizes the same model."""
        found = [self._edgedb(DEFAULT, default)]
        if has_avx2_below_the_best():
            found.append(self._edgedb(DEFAULT_AVX2, default, EDGEDB_ISA="avx2"))
        found += [self._peer(Format(name, False)) for name in (*REAL, "Q4_0")]
        return _case(SMOLLM2, found)

    def _edgedb(self, name: str, path: Path, **env: str) -> Contestant:
        command = (sys.executable, "-m", "bench.peers.edgedb_worker", str(path))
        return Contestant(name, (*command, "--context", str(CONTEXT)), env, tests=("decode",))

    def _peer(self, format: Format) -> Contestant:
        command = (self.paths.peer_python, "-m", "bench.peers.llama_cpp_worker")
        path = str(self.llama_cpp.file(format))
        return Contestant(
            peer(format.name), (*command, path, "--context", str(CONTEXT)), tests=("decode",)
        )

    def _rounded(self, bits: float) -> Path:
        plan = self.ours.plan(bits)
        if not plan.exists():
            raise EdgeDBError(f"{plan.name} is not there; the part `ours` makes it")
        path = plan.with_name(f"{plan.stem}-768.dbb")
        if not path.exists() or path.stat().st_mtime < plan.stat().st_mtime:
            teacher = str(self.ours.sources.teacher(padded=True))
            command = [sys.executable, "-m", "edgedb", "convert", teacher, str(path)]
            options = ["--plan", str(plan), "--method", "rtn", "--embedding", "int8"]
            run([*command, *options], f"cannot make {path.name}")
        return path


def _case(model: str, contestants: Sequence[Contestant]) -> Case:
    return Case(model, tuple(contestants), 1, TOKENS, rounds=ROUNDS, threads=THREADS)


def race(
    cases: Sequence[Case], journal: Journal, root: Path, rounds: int, say: Callable[[str], None]
) -> None:
    """Measure what ``journal`` does not have yet."""
    for case in cases:
        run_case(case, journal, root, rounds, progress=say)


def best(found: Results, name: str) -> Spread | None:
    """Tokens a second with the number of threads that is faster."""
    key = found.best([name], "decode", THREADS)
    return None if key is None else found.value(key)


def qualified(rows: Sequence[Row], limit: float) -> list[str]:
    """Contestants of ``REAL`` and Q4_0 with at most ``limit`` of KL."""
    good = [r for r in rows if r["kind"] == KIND and not r["padded"] and r["kl"] <= limit]
    return list(dict.fromkeys(peer(row["name"]) for row in good))


def against_the_best(
    found: Results, ours: str, theirs: Sequence[str], threads: Sequence[int] = THREADS
) -> tuple[Key, Key, Spread] | None:
    """The default model over the fastest of ``theirs``: both series, and ratios inside rounds."""
    a, b = (found.best(names, "decode", threads) for names in ([ours], theirs))
    ratio = found.ratio(a, b) if a and b else None
    return (a, b, ratio) if a and b and ratio else None


def recorded(path: Path) -> tuple[dict[str, Any], dict[str, Results]]:
    """What a journal was measured with (processor, commit), and its races by model."""
    if not path.exists():
        return {}, {}
    key = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
    records = Journal(path, key).records
    return key, {name: Results(name, records) for name in (WIDE, SMOLLM2)}
