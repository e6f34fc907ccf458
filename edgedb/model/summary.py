"""What a model file holds, as plain values ready for JSON: the facts behind ``edgedb info``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..format.packing import split_blocks
from ..format.tensors import Experts, LinearTensor, PairTensor, Weight, kind_text
from .dbb import DbbFile
from .description import describe
from .families import program_of


def summarize(file: DbbFile) -> dict[str, Any]:
    """Describe ``file``; reads every plane once to count its bits.

    Keys: ``path``; ``size_bytes``; ``parameters``; ``config``; ``description`` (its pass in words);
    ``quantization`` (provenance, as the exporter wrote it); ``tokenizer`` (without its file);
    ``bits_per_weight`` of the ``linear`` layers (embedding and head apart) and of the whole
    ``file``; ``bytes`` of ``linear``, ``embedding``, ``head``, ``positions`` (where they are
    learned), ``norms``, ``tokenizer`` and ``other`` (header, filler), which add up to the file;
    ``kinds`` (how many matrices are stored how); ``plan`` (planes or kind of every matrix by name);
    ``sparsity``, for every pair the share of zero bits in planes ``b1`` and ``b2`` (None: all have
    half a pair there) and the ``weights`` that have such a pair.
    """
    layers = {k: v for k, v in file.linears.items() if k.startswith("layers.")}
    positions = file.linears.get("positions")
    sizes = program_of(file.config).sizes()
    n_linear = sum(sizes[name] for name in layers)
    parameters = sum(sizes.values())
    parameters += sum(norm.size for norm in file.vectors.values())
    part_bytes = {
        "linear": sum(t.nbytes for t in layers.values()),
        "embedding": file.linears["embedding"].nbytes,
        "head": file.linears["head"].nbytes if "head" in file.linears else 0,
        **({"positions": positions.nbytes} if positions else {}),
        "norms": sum(norm.nbytes for norm in file.vectors.values()),
        "tokenizer": sum(array.nbytes for array in file.tokenizer.arrays().values()),
    }
    part_bytes["other"] = file.size_bytes - sum(part_bytes.values())
    return {
        "path": str(file.path),
        "size_bytes": file.size_bytes,
        "parameters": parameters,
        "config": file.config.to_dict(),
        "description": describe(file.config),
        "bits_per_weight": {
            "linear": 8 * part_bytes["linear"] / n_linear,
            "file": 8 * file.size_bytes / parameters,
        },
        "bytes": part_bytes,
        "kinds": {
            "layers": _count_kinds(layers),
            "embedding": kind_text(file.linears["embedding"].kind),
            "head": kind_text(file.linears["head"].kind) if "head" in file.linears else "tied",
        },
        "plan": {name: tensor.kind for name, tensor in file.linears.items()},
        "sparsity": _sparsity(list(layers.values())),
        "tokenizer": file.tokenizer.to_metadata(),
        "quantization": file.quantization,
    }


def _count_kinds(layers: dict[str, Weight]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in layers.values():
        kind = kind_text(tensor.kind)
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _sparsity(layers: list[Weight]) -> list[dict[str, Any]]:
    ones: dict[int, list[int]] = {}  # plane -> set bits, weights
    for tensor in _single(layers):
        if isinstance(tensor, PairTensor):
            for pair, (blocks, _) in enumerate(tensor.terms()):
                for i, bits in enumerate(count_bits(blocks)):
                    counts = ones.setdefault(2 * pair + i, [0, 0])
                    counts[0] += bits
                    counts[1] += tensor.rows * tensor.cols
    zero = {plane: 1 - bits / weights for plane, (bits, weights) in ones.items()}
    return [
        {
            "pair": plane // 2,
            "b1": zero[plane],
            "b2": zero.get(plane + 1),
            "weights": ones[plane][1],
        }
        for plane in sorted(ones)
        if plane % 2 == 0
    ]


def _single(layers: list[Weight]) -> Iterator[LinearTensor]:
    """Every matrix, those of stacks one by one."""
    for weight in layers:
        if isinstance(weight, Experts):
            yield from (weight[i] for i in range(len(weight)))
        else:
            yield weight


def count_bits(blocks: np.ndarray) -> list[int]:
    """Set bits of each plane, two or one, in blocks uint8 ``[tiles, groups, 1152 or 576]`` of which
    those beyond the matrix are zero."""
    planes, codes = split_blocks(blocks)
    low = high = 0
    for tile in planes:
        # Ones of every nibble at once: pairs of bits, then pairs of those.
        counts = tile - ((tile >> 1) & 0x55)
        counts = (counts & 0x33) + ((counts >> 2) & 0x33)
        low += int((counts & 15).sum(dtype=np.int64))
        high += int((counts >> 4).sum(dtype=np.int64))
    return [low, high] if codes.shape[2] == 2 else [low + high]
