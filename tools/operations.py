"""Operations of a forward pass by DB-LLM's count: ``python -m tools.operations MODEL.dbb``.

The paper (arXiv 2402.11960) counts two operations for each multiply-add of linear layers, head and
attention, a one-bit weight times a 16-bit activation as 1/16 of one, and a zero bit as nothing. Its
423.4 and 29.8 GFLOP for LLaMA-7B and 32 tokens follow from that (with 60% zeros).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgedb.format.packing import dequantize
from edgedb.format.tensors import PairTensor
from edgedb.model.config import ModelConfig
from edgedb.model.dbb import read_dbb
from edgedb.model.families import program_of
from edgedb.model.summary import count_bits

from .command import Arguments, one_line_errors

BIT_SHARE = 1 / 16  # of an operation on 16-bit numbers, for one bit times 16 bits


@dataclass(frozen=True)
class Count:
    """Operations of ``tokens`` tokens read at once. dense: in full precision. planes: the layers'
    matrices as bit planes, the rest dense. layers, head, attention: shares of dense."""

    tokens: int
    dense: float
    planes: float
    layers: float
    head: float
    attention: float


def count(config: ModelConfig, tokens: int, ones: Mapping[str, float]) -> Count:
    """Operations with ``ones[name]`` set bits a weight, over all planes, in each layer matrix."""
    layers = planes = 0.0
    for name, (rows, cols) in program_of(config).matrices().items():
        if name.startswith("layers."):
            dense = 2 * tokens * rows * cols
            layers += dense
            planes += dense * ones[name] * BIT_SHARE
    head = 2 * tokens * config.vocab_size * config.hidden_size
    # Scores and mixing, all pairs of positions: the paper's figure does not halve for causality.
    attention = 4 * tokens * tokens * config.q_size * config.n_layers
    rest = head + attention
    return Count(tokens, layers + rest, planes + rest, layers, head, attention)


def ones_per_weight(tensor: PairTensor) -> list[list[float]]:
    """For each pair the share of weights whose bit is set in b1 and in b2; in a half, b1 alone."""
    n = tensor.rows * tensor.cols
    return [[bits / n for bits in count_bits(blocks)] for blocks, _ in tensor.terms()]


def report(path: Path, tokens: int) -> dict[str, Any]:
    """Operations of a model for so many tokens, and how many of its bits and weights are zero."""
    file = read_dbb(path)
    ones: dict[str, float] = {}
    zero_b1 = zero_b2 = zero_weights = total = 0.0
    for name, tensor in file.linears.items():
        if not name.startswith("layers."):
            continue
        if not isinstance(tensor, PairTensor):
            ones[name] = 1 / BIT_SHARE
            continue
        shares = ones_per_weight(tensor)
        ones[name] = sum(map(sum, shares))
        n = tensor.rows * tensor.cols
        total += n
        zero_b1 += n * (1 - sum(share[0] for share in shares) / len(shares))
        zero_b2 += n * (1 - sum(share[1] for share in shares[: tensor.pairs]) / tensor.pairs)
        zero_weights += float((dequantize(tensor) == 0).sum())
    counted = count(file.config, tokens, ones)
    return {
        "model": path.name,
        **asdict(counted),
        "ratio": counted.dense / counted.planes,
        "zeros_b1": zero_b1 / total if total else None,
        "zeros_b2": zero_b2 / total if total else None,
        "zero_weights": zero_weights / total if total else None,
    }


@one_line_errors
def main() -> None:
    """``python -m tools.operations MODEL.dbb [--tokens N]``."""
    parser = Arguments(
        prog="python -m tools.operations", description="Sparsity and operations of a model."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    print(json.dumps(report(args.model, args.tokens), indent=1))


if __name__ == "__main__":
    main()
