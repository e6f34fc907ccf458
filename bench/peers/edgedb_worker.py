"""edgedb as a worker: ``python -m bench.peers.edgedb_worker FILE.dbb --threads 1,2``."""

from __future__ import annotations

import argparse
from typing import Any

from edgedb import __version__
from edgedb.measure.benchmark import Decoder, Weights, bytes_per_token
from edgedb.model.dbb import read_dbb
from edgedb.ops import create

from .worker import run, serve


class EdgeDB:
    """One model file, mapped; one set of threads for each thread count."""

    def __init__(
        self, path: str, context: int, threads: list[int], backend: str | None, isa: str | None
    ) -> None:
        file = read_dbb(path, verify=False)
        weights = Weights(file.config, file.linears, file.vectors)
        self._decoders = {
            count: Decoder(weights, create(backend, isa, count), context) for count in threads
        }
        self._now = self._decoders[threads[0]]
        ops = self._now.ops
        self.description = {
            "version": f"edgedb {__version__}",
            "isa": " ".join(part for part in (ops.name, ops.isa, ops.kernel) if part),
            "size_bytes": sum(tensor.nbytes for tensor in file.linears.values()),
            "bytes_per_token": bytes_per_token(weights),
        }

    def reset(self, threads: int) -> None:
        self._now = self._decoders[threads]
        self._now.reset()

    def decode(self) -> None:
        self._now.decode(1)

    def prompt(self, n: int) -> None:
        self._now.read_prompt(n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--backend")
    parser.add_argument("--isa")
    options = parser.parse_args()
    threads = [int(count) for count in options.threads.split(",")]
    engine: Any = EdgeDB(options.model, options.context, threads, options.backend, options.isa)
    serve(lambda request: run(engine, request), engine.description)


if __name__ == "__main__":
    main()
