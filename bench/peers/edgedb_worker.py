"""edgedb as a worker: ``python -m bench.peers.edgedb_worker FILE.dbb --threads 1,2``."""

from __future__ import annotations

import argparse
from typing import Any

from edgedb import __version__
from edgedb.format.tensors import linear_arrays
from edgedb.measure.benchmark import Decoder, Weights, bytes_per_token
from edgedb.measure.shapes import reaching
from edgedb.model.dbb import read_dbb
from edgedb.model.residence import lies
from edgedb.ops import create

from .worker import run, serve


class EdgeDB:
    """One model file, mapped or copied; threads and a cache for each number of threads."""

    def __init__(self, options: argparse.Namespace) -> None:
        file = read_dbb(options.model, verify=False, memory=options.memory)
        weights = Weights(file.config, file.linears, file.vectors)
        if file.quantization.get("method") == "random weights":
            weights = reaching(weights, options.context)
        threads = [int(count) for count in options.threads.split(",")]
        self._decoders = {
            count: Decoder(
                weights,
                create(options.backend, options.isa, count),
                options.context,
                options.kv_dtype,
            )
            for count in threads
        }
        self._now = self._decoders[threads[0]]
        self._now.read_prompt(1)  # touches what it looks at
        ops = self._now.ops
        self.description = {
            "version": f"edgedb {__version__}",
            "isa": " ".join(part for part in (ops.name, ops.isa, ops.kernel) if part),
            "size_bytes": sum(tensor.nbytes for tensor in file.linears.values()),
            "bytes_per_token": bytes_per_token(weights),
            "memory": lies(
                file.memory, [a for tensor in file.linears.values() for a in linear_arrays(tensor)]
            ),
        }

    def reset(self, threads: int, depth: int = 0) -> None:
        self._now = self._decoders[threads]
        self._now.reset(depth)

    def decode(self) -> None:
        self._now.decode(1)

    def prompt(self, n: int) -> None:
        self._now.read_prompt(n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kv-dtype", default="float16")
    parser.add_argument("--memory", default="map")
    parser.add_argument("--backend")
    parser.add_argument("--isa")
    engine: Any = EdgeDB(parser.parse_args())
    serve(lambda request: run(engine, request), engine.description)


if __name__ == "__main__":
    main()
