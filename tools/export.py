"""Convert a checkpoint to a ``.dbb``: ``python -m tools.export SOURCE OUT.dbb --pairs 2``.

Reads one tensor at a time, needs no torch, and goes on where an interrupted run stopped.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from rich.console import Console

from edgedb.dbb import DbbWriter, DenseTensor, LinearTensor
from edgedb.errors import EdgeDBError
from edgedb.packing import dequantize, pack_int8, quantize_int8
from edgedb.tensors import Kind

from .sources import Source, open_source

# Part of the provenance: raised when the same source and options would give other weights.
VERSION = 1

METHODS = ("fdb", "rtn", "int8", "dense16", "dense32")
TABLE_KINDS = ("int8", "float16", "float32")
_KIND_OF_METHOD: dict[str, Kind] = {"int8": "int8", "dense16": "float16", "dense32": "float32"}


@dataclass(frozen=True)
class Options:
    """How to store the weights; two runs with equal options and source write equal bytes."""

    method: str = "fdb"
    pairs: int = 2
    embedding: str | None = None  # kind of the embedding; None: int8, or the dense method's
    head: str | None = None  # kind of a separate head; None: as the embedding

    def kind(self, name: str) -> Kind:
        """How matrix ``name`` is stored."""
        layers: Kind = _KIND_OF_METHOD.get(self.method, self.pairs)
        if name not in ("embedding", "head"):
            return layers
        table = "int8" if isinstance(layers, int) else layers
        embedding = cast(Kind, self.embedding or table)
        return cast(Kind, self.head or embedding) if name == "head" else embedding


def export(source: Source, out: Path, options: Options, *, console: Console) -> dict[str, Any]:
    """Write ``source`` to ``out``; returns the provenance record that the file carries."""
    config = source.config
    kinds = {name: options.kind(name) for name in config.linear_shapes()}
    fingerprint = source.fingerprint()
    key = json.dumps([fingerprint, dataclasses.asdict(options)], sort_keys=True)
    with DbbWriter(out, config, source.tokenizer_spec, kinds, fingerprint=key) as writer:
        for name in writer.remaining:
            if name not in kinds:
                writer.put(name, source.tensor(name))
                continue
            weight = source.tensor(name)
            tensor = store_plain(weight, kinds[name])
            writer.put(name, tensor, {"error": relative_error(weight, dequantize(tensor))})
            console.print(f"{name}  {kinds[name]}  {writer.record(name)['error']:.4g}")
        record = {
            "method": options.method,
            "source": fingerprint,
            "exporter": VERSION,
            "errors": {name: writer.record(name)["error"] for name in kinds},
        }
        writer.finish(record)
    return record


def store_plain(weight: np.ndarray, kind: Kind) -> LinearTensor:
    """``weight`` as an int8, float16 or float32 tensor."""
    if kind == "int8":
        return pack_int8(*quantize_int8(weight))
    return DenseTensor(weight.astype(np.float16 if kind == "float16" else np.float32))


def relative_error(weight: np.ndarray, stored: np.ndarray) -> float:
    """``|weight - stored|^2 / |weight|^2``."""
    difference = (weight - stored).ravel()
    flat = weight.ravel()
    size = float(np.dot(flat, flat))
    return float(np.dot(difference, difference)) / size if size else 0.0


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(METHODS), default="fdb", show_default=True)
@click.option("--pairs", type=click.IntRange(1, 4), default=2, show_default=True)
@click.option("--embedding", type=click.Choice(TABLE_KINDS))
@click.option("--head", type=click.Choice(TABLE_KINDS))
def main(source: Path, out: Path, **values: Any) -> None:
    """Convert SOURCE (a Hugging Face directory or a GGUF file) to OUT.dbb."""
    console = Console(stderr=True)
    try:
        export(open_source(source), out, Options(**values), console=console)
    except EdgeDBError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
