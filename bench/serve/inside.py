"""Many streams over one model in this process.

Every stream is a thread with a session of its own; they begin together, behind their prompts.
``same`` is the share of answers that equal the one of the same stream alone.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgedb

from .random_models import random_dbb


@dataclass(frozen=True)
class Round:
    """What some streams did together."""

    per_second: float  # tokens of all streams, from their common start to the last one's end
    gaps: list[float]  # seconds from each token to the next one of its stream
    slowest: float  # of a stream's time, over the fastest one's
    same: float  # share of answers that are the stream's own


class Bench:
    """A model, and what each stream writes alone."""

    def __init__(self, model: edgedb.Model, prompt: int, tokens: int) -> None:
        self.model, self._prompt, self._tokens = model, prompt, tokens
        self._alone: dict[int, list[int]] = {}

    def _ids(self, number: int, n: int) -> list[int]:
        draw = np.random.default_rng(number)
        return [int(i) for i in draw.integers(10, self.model.vocab_size, n)]

    def _answer(
        self, number: int, stamps: list[float], start: threading.Barrier | None
    ) -> list[int]:
        session = self.model.session()
        ids = self._ids(number, self._prompt)
        session.prefill(ids)
        if start is not None:
            start.wait()
        tokens = []
        stamps.append(time.perf_counter())
        for chunk in session.stream(ids, max_tokens=self._tokens, temperature=0.7, seed=number):
            if chunk.token is not None:
                tokens.append(chunk.token)
                stamps.append(time.perf_counter())
        return tokens

    def together(self, streams: int, intruder: int) -> Round:
        """``streams`` at once, and maybe a long prompt beside them."""
        for number in range(streams):
            if number not in self._alone:
                self._alone[number] = self._answer(number, [], None)
        start = threading.Barrier(streams)
        stamps: list[list[float]] = [[] for _ in range(streams)]
        found: dict[int, list[int]] = {}
        threads = [
            threading.Thread(
                target=lambda i=number: found.update({i: self._answer(i, stamps[i], start)})
            )
            for number in range(streams)
        ]
        done = threading.Event()
        if intruder:
            threads.append(threading.Thread(target=self._intrude, args=(intruder, done)))
        for thread in threads:
            thread.start()
        for thread in threads[:streams]:
            thread.join()
        done.set()
        for thread in threads[streams:]:
            thread.join()
        took = [one[-1] - one[0] for one in stamps]
        seconds = max(one[-1] for one in stamps) - min(one[0] for one in stamps)
        return Round(
            per_second=sum(len(one) - 1 for one in stamps) / seconds,
            gaps=[b - a for one in stamps for a, b in itertools.pairwise(one[1:])],
            slowest=max(took) / min(took),
            same=sum(found[i] == self._alone[i] for i in range(streams)) / streams,
        )

    def _intrude(self, n: int, done: threading.Event) -> None:
        self.model.generate(self._ids(-1 % 2**32, n), max_tokens=1, cancelled=done.is_set)


def measure_inside(args: argparse.Namespace) -> None:
    """Print a line for each number of streams; the numbers take turns in every round."""
    path = Path(args.target)
    if args.shape:
        path = random_dbb(path, args.shape)
    model = edgedb.load(path, threads=args.threads, draft=args.draft, verify=False)
    bench = Bench(model, args.prompt, args.tokens)
    rounds = [[bench.together(n, args.intruder) for n in args.streams] for _ in range(args.rounds)]
    for i, n in enumerate(args.streams):
        of_n = [one[i] for one in rounds]
        ratio = statistics.median(one[i].per_second / one[0].per_second for one in rounds)
        gaps = np.array([gap for one in of_n for gap in one.gaps]) * 1000
        p50, p95, p99 = (f"{value:.1f}" for value in np.percentile(gaps, [50, 95, 99]))
        print(
            f"{n} streams: {statistics.median(one.per_second for one in of_n):.1f} tokens/s, "
            f"{ratio:.2f} of the first's; ms a token {p50}, {p95}, {p99} (p50, p95, p99); "
            f"slowest stream {max(one.slowest for one in of_n):.2f} of the fastest; "
            f"same {min(one.same for one in of_n):.0%}",
            flush=True,
        )
