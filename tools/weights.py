"""Any model this project knows as float weights: checkpoint, ``.dbb``, student, peer's folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgedb.convert.sources import open_source
from edgedb.convert.sources.source import Float32
from edgedb.format.packing import dequantize
from edgedb.format.tensors import PairTensor
from edgedb.model.config import ModelConfig
from edgedb.model.dbb import DbbFile, read_dbb
from edgedb.model.families import program_of
from edgedb.text.spec import TokenizerSpec

# What a table of floats costs where a method leaves it alone.
PLAIN_BITS = 16


@dataclass
class Weights:
    """A ``WeightSource`` for ``tools.decoder.load_teacher``, and what it costs to store.

    layer_bits: bits a weight of the matrices inside the layers, scales included. all_bits: of all
    weights, embedding and head too: by the file's size for a ``.dbb``, else by counting layers as
    said and the rest as float16. tokenizer_spec: None in a student that was saved without one.
    """

    config: ModelConfig
    tensor: Callable[[str], Float32]
    layer_bits: float
    all_bits: float
    sha256: str
    tokenizer_spec: TokenizerSpec | None
    record: dict[str, Any] = field(default_factory=dict)


def open_weights(path: str | Path) -> Weights:
    """Open a ``.dbb``, a ``student.safetensors``, a GGUF file or a Hugging Face folder.

    Activations are not quantized by whoever uses them: a ``.dbb`` is measured here for its weights
    alone, and by ``edgedb eval perplexity`` as its engine runs it. Raises ``EdgeDBError`` if there
    is no readable model at ``path``.
    """
    path = Path(path)
    if path.suffix == ".dbb":
        return _from_dbb(path)
    if path.suffix == ".safetensors":
        return _from_student(path)
    source = open_source(path)
    peer = path / "peer.json"
    record = json.loads(peer.read_text()) if peer.is_file() else {}
    layer_bits = float(record.get("bits_per_weight", PLAIN_BITS))
    return Weights(
        source.config,
        source.tensor,
        layer_bits,
        _with_tables(source.config, layer_bits),
        sha256_of(source.files()),
        source.tokenizer_spec,
        record,
    )


def layer_weights(config: ModelConfig) -> int:
    """Weights of the matrices inside the layers."""
    shapes = program_of(config).matrices()
    return sum(r * c for name, (r, c) in shapes.items() if name.startswith("layers."))


def all_weights(config: ModelConfig) -> int:
    """Weights of all matrices, tables included."""
    return sum(rows * cols for rows, cols in program_of(config).matrices().values())


def _with_tables(config: ModelConfig, layer_bits: float, table_bits: float = PLAIN_BITS) -> float:
    inside, whole = layer_weights(config), all_weights(config)
    return (layer_bits * inside + table_bits * (whole - inside)) / whole


def _from_dbb(path: Path) -> Weights:
    file: DbbFile = read_dbb(path)
    inside = sum(t.nbytes for name, t in file.linears.items() if name.startswith("layers."))

    def tensor(name: str) -> Float32:
        if name in file.vectors:
            return np.asarray(file.vectors[name])
        return dequantize(file.linears[name])

    pairs = {
        t.planes / 2 for n, t in file.linears.items() if isinstance(t, PairTensor) and "." in n
    }
    return Weights(
        file.config,
        tensor,
        8 * inside / layer_weights(file.config),
        8 * file.size_bytes / all_weights(file.config),
        sha256_of([path]),
        file.tokenizer,
        {"pairs": sorted(pairs), "method": file.quantization.get("method")},
    )


def _from_student(path: Path) -> Weights:
    from torch.nn import Module

    from .checkpoint import load_student, tokenizer_of
    from .student import plan_of

    student, metadata = load_student(path)
    matrices = dict(student.matrices())
    others = dict(student.vectors()) | student.tables()

    def tensor(name: str) -> Float32:
        found = matrices[name].weight() if name in matrices else others[name]
        table = found() if isinstance(found, Module) else found  # tables may be of planes too
        return np.asarray(table.detach().numpy(), np.float32)

    # A plane of a group of 64: a bit a weight and an int8 scale; a float32 for each row and pair.
    config, plan = student.config, plan_of(student)
    shapes = program_of(config).matrices()
    inside = [name for name in shapes if name.startswith("layers.")]

    def bits(name: str) -> float:
        planes, (_, cols) = plan.get(name, 0), shapes[name]
        return 1.125 * planes + 32 * -(-planes // 2) / cols if planes else PLAIN_BITS

    layer_bits = sum(bits(name) * math.prod(shapes[name]) for name in inside)
    layer_bits /= layer_weights(config)
    return Weights(
        config,
        tensor,
        layer_bits,
        _with_tables(config, layer_bits, bits("embedding")),
        sha256_of([path]),
        tokenizer_of(path, metadata) if "tokenizer" in metadata else None,
        {"step": int(metadata["step"]), "pairs": sorted({plan[name] / 2 for name in inside})},
    )


def sha256_of(files: list[Path]) -> str:
    """SHA-256 of files one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()
