"""Products with weights from memory: checkouts of edgedb in turns, beside a plain read.

    python -m bench.from_memory CHECKOUT OTHER... [--tokens 1,4,16] [--isa avx2] [--int8]

Every checkout (with its C library built in place) runs in a process of its own, over half a
gigabyte of matrices in pages as large as the system gives, and the processes take turns with a loop
that reads as many bytes and computes nothing. Activations are Gaussian. Printed are medians:
nanoseconds for a block of 64 x 64 weights and a token, and the speed over that of the plain read of
the same round.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
from pathlib import Path

import numpy as np

from bench.peers.cases import shared_library
from bench.turns import Checkout
from edgedb.ops.buffer import aligned_zeros

BYTES = 1 << 29
SECONDS = 0.15
ROOT = Path(__file__).resolve().parents[1]

# One number of tokens in, the seconds of one product out.
WORKER = """
import sys, time
import numpy as np
from edgedb import ops as operations
from edgedb.format.tensors import Int8Tensor, PairTensor
from edgedb.ops.buffer import aligned_zeros

rows, cols, total, seconds, threads, isa, kind = sys.argv[1:]
rows, cols, total = int(rows), int(cols), int(total)
ops = operations.create("native", isa or None, int(threads))
tiles, groups = -(-rows // 64), -(-cols // 64)
each = tiles * groups * (4096 if kind == "int8" else 1152)
count = max(1, total // each)
rng = np.random.Generator(np.random.PCG64(1))
data = aligned_zeros(count * each, np.uint8)
one = rng.integers(0, 256, 4096 if kind == "int8" else 1152, np.uint8)
if kind == "int8":
    one[one == 128] = 0
    data.reshape(-1, 4096)[:] = one
    scales = aligned_zeros((count, tiles, groups, 64), np.float32)
    scales[:] = 1e-3
    parts = data.view(np.int8).reshape(count, tiles, groups, 4096)
    tensors = [Int8Tensor(parts[i], scales[i], rows, cols) for i in range(count)]
else:
    one[1024:] &= 63
    data.reshape(-1, 1152)[:] = one
    scale = np.full((1, rows), 1e-3, np.float32)
    parts = data.reshape(count, 1, tiles, groups, 1152)
    tensors = [PairTensor(parts[i], scale, rows, cols) for i in range(count)]
matrices = [ops.matrix(tensor) for tensor in tensors]
print("ready", flush=True)
at = 0
for line in sys.stdin:
    n = int(line)
    x = ops.wrap(rng.standard_normal((n, cols)).astype(np.float32))
    out = ops.wrap(np.zeros((n, rows), np.float32))
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < float(seconds):
        ops.matmul(matrices[at % count], x, out, n)
        at, done = at + 1, done + 1
    print((time.perf_counter() - begun) / done, flush=True)
"""


class PlainRead:
    """What reads memory and computes nothing."""

    def __init__(self) -> None:
        folder = ROOT / ".cache" / "peers"
        folder.mkdir(parents=True, exist_ok=True)
        library = shared_library(ROOT / "bench" / "peers" / "read_probe.c", folder)
        self._call = ctypes.CDLL(str(library)).read_limit
        self._call.restype = ctypes.c_double
        self._data = aligned_zeros((BYTES,), np.uint8)
        self._data[:] = 1

    def measure(self, threads: int) -> float:
        """Bytes a second."""
        where, size = ctypes.c_void_p(self._data.ctypes.data), ctypes.c_int64(BYTES)
        rest = ctypes.c_int32(threads), ctypes.c_int64(0), ctypes.c_double(SECONDS)
        return float(self._call(where, size, *rest))


def main() -> None:
    """Print a line for each checkout and number of tokens."""
    parser = argparse.ArgumentParser(description="Measure products with weights from memory.")
    parser.add_argument("checkouts", nargs="+")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--tokens", default="1", help="numbers of tokens, with commas between")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="", help="instruction set; default: the best")
    parser.add_argument("--int8", action="store_true", help="int8 codes in place of a pair")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    kind = "int8" if args.int8 else "pairs"
    shape = (args.rows, args.cols, BYTES, SECONDS, args.threads, args.isa, kind)
    checkouts = [
        Checkout(folder, WORKER, [str(value) for value in shape]) for folder in args.checkouts
    ]
    read = PlainRead()
    blocks = -(-args.rows // 64) * -(-args.cols // 64)
    block_bytes = 4096 + 256 if args.int8 else 1152  # codes and their scales
    for tokens in map(int, args.tokens.split(",")):
        limits, found = [], []
        for _ in range(args.rounds):
            limits.append(read.measure(args.threads))
            found.append([checkout.ask(str(tokens))[0] for checkout in checkouts])
        print(f"{tokens} tokens: plain read {statistics.median(limits) / 1e9:.1f} GB/s")
        for i, folder in enumerate(args.checkouts):
            times = [one[i] for one in found]
            block = 1e9 * statistics.median(times) / blocks / tokens
            pairs = zip(limits, times, strict=True)
            share = statistics.median(block_bytes * blocks / t / limit for limit, t in pairs)
            print(f"  {folder}: {block:.1f} ns a block and token, {share:.2f} of the plain read")
    for checkout in checkouts:
        checkout.close()


if __name__ == "__main__":
    main()
