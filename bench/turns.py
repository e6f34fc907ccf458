"""Checkouts of edgedb in turns: how much faster one decodes, or reads a prompt, than another.

    python bench/turns.py MODEL CHECKOUT OTHER... [--threads 1] [--tokens 8] [--prompt 128]
    python bench/turns.py MODEL CHECKOUT OTHER... --depth 4096

Every checkout (with its C library built in place) runs in a process of its own, and the processes
take turns, so that a noisy machine disturbs all alike. Printed are medians, and the median of the
ratios to the first checkout inside a round. Random weights will do: see ``edgedb bench --shape``.
``CHECKOUT:int8`` has a cache of that type. Tokens are decoded behind the prompt; with ``--depth``
behind 64 positions and behind so many, one after the other, for memory may change its pace from
minute to minute: printed is what depth adds to a token, and the share of speed that is kept.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

# One line in, one measurement out. Older checkouts have files in other places, and a Llama where
# newer ones have a Network.
WORKER = """
import sys, time
from edgedb import ops as operations
try:
    from edgedb.model.dbb import read_dbb
except ImportError:
    from edgedb.dbb import read_dbb

model, threads, isa, tokens, prompt, depth, kv_dtype = sys.argv[1:]
file = read_dbb(model, verify=False)
ops = operations.create(threads=int(threads), isa=isa or None)
room = int(tokens) + max(int(prompt), int(depth)) + 1
try:
    from edgedb.model.network import Network
    network = Network(file.config, file.linears, file.vectors, ops, room)
    cache, state = network.cache(room, kv_dtype), network.state()
except ImportError:
    from edgedb.llama import KVCache, Llama, RunState
    network = Llama(file.config, file.linears, file.norms, ops, room)
    cache, state = KVCache(file.config, ops, room, kv_dtype), RunState(file.config, ops)
ids = [(7 * i + 5) % file.config.vocab_size for i in range(max(int(prompt), int(depth)))]
for start in range(0, int(depth), 128):
    network.forward(ids[start : start + 128], cache, state)
print("ready", flush=True)
for _ in sys.stdin:
    if int(depth):
        times = []
        for cache.length in (64, int(depth)):  # other rows than were read, which costs the same
            begun = time.perf_counter()
            for _ in range(int(tokens)):
                network.forward([5], cache, state)
            times.append(time.perf_counter() - begun)
        print(*times, flush=True)
        continue
    cache.length = 0
    begun = time.perf_counter()
    for start in range(0, len(ids), 128):
        network.forward(ids[start : start + 128], cache, state)
    read = time.perf_counter()
    for _ in range(int(tokens)):
        network.forward([5], cache, state)
    print(read - begun, time.perf_counter() - read, flush=True)
"""


class Checkout:
    """A checkout of edgedb that runs a script in a process of its own and answers line by line."""

    def __init__(self, folder: str, script: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(folder).resolve())},
            text=True,
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a checkout ended with status {self._process.wait()}")
        return line

    def ask(self, line: str) -> list[float]:
        """The numbers that it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return [float(number) for number in self._line().split()]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Worker(Checkout):
    """A checkout that waits to be measured, ``FOLDER`` or ``FOLDER:type of cache``."""

    def __init__(self, checkout: str, arguments: list[str]) -> None:
        folder, _, kv_dtype = checkout.partition(":")
        super().__init__(folder, WORKER, [*arguments, kv_dtype or "float16"])

    def measure(self) -> tuple[float, float]:
        """Seconds for the prompt and for the tokens after it; or for tokens at 64, and at depth."""
        prompt, decode = self.ask("go")
        return prompt, decode


def print_depth(checkouts: list[str], rounds: list[list[tuple[float, float]]], tokens: int) -> None:
    """A line for each checkout: a token at 64 positions, what depth adds, and the share kept."""
    for i, checkout in enumerate(checkouts):
        flat = statistics.median(found[i][0] for found in rounds) / tokens
        more = statistics.median(found[i][1] - found[i][0] for found in rounds) / tokens
        kept = statistics.median(found[i][0] / found[i][1] for found in rounds)
        ratio = statistics.median(
            (found[i][1] - found[i][0]) / (found[0][1] - found[0][0]) for found in rounds
        )
        print(
            f"{checkout}: {1e6 * flat:.0f} us at 64 positions, {1e6 * more:.0f} more at depth "
            f"({ratio:.2f} of the first's), {kept:.3f} of its speed kept"
        )


def main() -> None:
    """Print a line for each checkout and what was asked for."""
    parser = argparse.ArgumentParser(description="Measure checkouts of edgedb in turns.")
    parser.add_argument("model", type=Path)
    parser.add_argument("checkouts", nargs="+", help="FOLDER or FOLDER:float32, :int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="", help="instruction set; default: the best")
    parser.add_argument("--tokens", type=int, default=8, help="decoded, one by one")
    parser.add_argument("--prompt", type=int, default=0, help="tokens read before them")
    parser.add_argument("--depth", type=int, default=0, help="positions to decode behind")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    options = (args.model, args.threads, args.isa, args.tokens, args.prompt, args.depth)
    passed = [str(x) for x in options]
    workers = [Worker(checkout, passed) for checkout in args.checkouts]
    for worker in workers:
        worker.measure()  # fills caches
    rounds = [[worker.measure() for worker in workers] for _ in range(args.rounds)]
    for worker in workers:
        worker.close()
    if args.depth:
        print_depth(args.checkouts, rounds, args.tokens)
        return
    for which, (name, count) in enumerate((("prompt", args.prompt), ("decode", args.tokens))):
        for i, checkout in enumerate(args.checkouts):
            if not count:
                continue
            rate = count / statistics.median(found[i][which] for found in rounds)
            ratio = statistics.median(found[0][which] / found[i][which] for found in rounds)
            print(f"{name}: {checkout}: {rate:.1f} tokens/s, {ratio:.3f} of the first's speed")


if __name__ == "__main__":
    main()
