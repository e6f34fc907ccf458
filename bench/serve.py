"""Many streams over one model in this process: tokens a second together, and how evenly they come.

    python bench/serve.py MODEL [--streams 1 4 16] [--threads 2] [--tokens 32] [--prompt 32]
                          [--intruder 4000] [--shape llama-1.1b]

Every stream is a thread with a session of its own; they begin together, behind their prompts. Each
line is the median of ``--rounds`` rounds, in which the numbers of streams take turns. ``same`` is
the share of answers that equal the one of the same stream alone. With ``--intruder`` another one
hands in a prompt of so many tokens while the streams write. With ``--shape``, MODEL are random
weights of that shape, made if they are not there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import edgedb
from edgedb import ops
from edgedb.measure.shapes import write_random
from edgedb.model.dbb import read_dbb
from edgedb.run.engine import Model
from edgedb.text.spec import TokenizerSpec


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


def open_random(path: Path, shape: str, threads: int | None) -> Model:
    """Random weights, and a tokenizer of as many tokens, which they have not."""
    file = read_dbb(write_random(path, shape), verify=False)
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    words = {f"t{i}": i for i in range(file.config.vocab_size)}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": words, "merges": []},
        "pre_tokenizer": bytes_of,
        "decoder": bytes_of,
    }
    spec = TokenizerSpec("tokenizers", json.dumps(document).encode(), None, ())
    created = ops.create(threads=threads)
    return Model(replace(file, tokenizer=spec), created, None, "float16")


def main() -> None:
    """Print a line for each number of streams."""
    parser = argparse.ArgumentParser(description="Measure many streams over one model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--intruder", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="")
    args = parser.parse_args()
    if args.shape:
        model = open_random(args.model, args.shape, args.threads)
    else:
        model = edgedb.load(args.model, threads=args.threads, verify=False)
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


if __name__ == "__main__":
    main()
