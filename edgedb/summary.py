"""What a model file holds, as plain values ready for JSON: the facts behind ``edgedb info``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dbb import DbbFile, PairTensor
from .tensors import PLANE_BYTES, LinearTensor


def summarize(file: DbbFile) -> dict[str, Any]:
    """Describe ``file``; reads every plane once to count its bits.

    Keys: ``path``; ``size_bytes``; ``parameters``; ``config``; ``quantization`` (provenance, as the
    exporter wrote it); ``tokenizer`` (without its file); ``bits_per_weight`` of the ``linear``
    layers (embedding and head apart) and of the whole ``file``; ``bytes`` of ``linear``,
    ``embedding``, ``head``, ``norms``, ``tokenizer`` and ``other`` (header, filler), which add up
    to the file; ``kinds`` (how many matrices are stored how); ``sparsity``, for every pair the
    share of zero bits in planes ``b1`` and ``b2`` and the ``weights`` that have such a pair.
    """
    layers = {k: v for k, v in file.linears.items() if k not in ("embedding", "head")}
    n_linear = sum(t.rows * t.cols for t in layers.values())
    parameters = sum(t.rows * t.cols for t in file.linears.values())
    parameters += sum(norm.size for norm in file.vectors.values())
    part_bytes = {
        "linear": sum(t.nbytes for t in layers.values()),
        "embedding": file.linears["embedding"].nbytes,
        "head": file.linears["head"].nbytes if "head" in file.linears else 0,
        "norms": sum(norm.nbytes for norm in file.vectors.values()),
        "tokenizer": len(file.tokenizer.data),
    }
    part_bytes["other"] = file.size_bytes - sum(part_bytes.values())
    return {
        "path": str(file.path),
        "size_bytes": file.size_bytes,
        "parameters": parameters,
        "config": file.config.to_dict(),
        "bits_per_weight": {
            "linear": 8 * part_bytes["linear"] / n_linear,
            "file": 8 * file.size_bytes / parameters,
        },
        "bytes": part_bytes,
        "kinds": {
            "layers": _count_kinds(layers),
            "embedding": _kind_text(file.linears["embedding"]),
            "head": _kind_text(file.linears["head"]) if "head" in file.linears else "tied",
        },
        "sparsity": _sparsity(list(layers.values())),
        "tokenizer": file.tokenizer.to_metadata(),
        "quantization": file.quantization,
    }


def _kind_text(tensor: LinearTensor) -> str:
    if isinstance(tensor, PairTensor):
        return f"{tensor.pairs} pair{'s' if tensor.pairs > 1 else ''}"
    return str(tensor.kind)


def _count_kinds(layers: dict[str, LinearTensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in layers.values():
        kind = _kind_text(tensor)
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _sparsity(layers: list[LinearTensor]) -> list[dict[str, Any]]:
    ones: dict[int, list[int]] = {}  # pair -> set bits of b1, of b2, weights
    for tensor in layers:
        if isinstance(tensor, PairTensor):
            for pair in range(tensor.pairs):
                counts = ones.setdefault(pair, [0, 0, 0])
                for tile in tensor.blocks[pair]:
                    b1, b2 = count_bits(tile)
                    counts[0] += b1
                    counts[1] += b2
                counts[2] += tensor.rows * tensor.cols
    return [
        {"pair": pair, "b1": 1 - b1 / weights, "b2": 1 - b2 / weights, "weights": weights}
        for pair, (b1, b2, weights) in sorted(ones.items())
    ]


def count_bits(blocks: np.ndarray) -> tuple[int, int]:
    """Set bits of planes b1 and b2 in blocks uint8 ``[n, 1152]``; filler bits are zero."""
    planes = blocks[:, :PLANE_BYTES]
    # Ones of every nibble at once: pairs of bits, then pairs of those.
    counts = planes - ((planes >> 1) & 0x55)
    counts = (counts & 0x33) + ((counts >> 2) & 0x33)
    return int((counts & 15).sum(dtype=np.int64)), int((counts >> 4).sum(dtype=np.int64))
