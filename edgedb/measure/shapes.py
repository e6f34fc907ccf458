"""Shapes of known models, and models of these shapes with random weights.

Random bytes cost the kernels what real ones cost: nothing skips or branches on values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import arguments
from ..errors import EdgeDBError
from ..format.tensors import (
    BLOCK_BYTES,
    HALF_BYTES,
    INT8_BLOCK_BYTES,
    MAX_PLANES,
    TILE,
    DenseTensor,
    Experts,
    Int8Tensor,
    Kind,
    Weight,
    linear_of,
    planes_of,
    tile_grid,
)
from ..model.config import ModelConfig
from ..model.dbb import read_dbb
from ..model.dbb_writer import DbbWriter
from ..model.families import program_of
from ..model.footprint import Footprint
from ..model.rotary import Rope, RopeScaling
from ..text.spec import TokenizerSpec

SHAPES = {
    "llama-2-7b": ModelConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 4096),
    "llama-1.1b": ModelConfig("llama", 32000, 2048, 5632, 22, 32, 4, 64, 2048),
    "smollm2-135m": ModelConfig(
        "llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, rope_theta=1e5, tie_word_embeddings=True
    ),
    "llama-3.2-1b": ModelConfig(
        "llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 32.0), tie_word_embeddings=True,
    ),
    "qwen3-0.6b": ModelConfig(
        "qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960, 1e-6, 1e6, tie_word_embeddings=True
    ),
    "gemma-3-1b": ModelConfig(
        "gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, 32768, 1e-6, 1e6,
        tie_word_embeddings=True, sliding_window=512, windowed_rope=Rope(1e4),
        windowed_layers=tuple(i for i in range(26) if (i + 1) % 6),
    ),
    "qwen3-4b": ModelConfig(
        "qwen3", 151936, 2560, 9728, 36, 32, 8, 128, 40960, 1e-6, 1e6, tie_word_embeddings=True
    ),
    "smollm2-360m": ModelConfig(
        "llama", 49152, 960, 2560, 32, 15, 5, 64, 8192, rope_theta=1e5, tie_word_embeddings=True
    ),
    "smollm2-1.7b": ModelConfig(
        "llama", 49152, 2048, 8192, 24, 32, 32, 64, 8192, rope_theta=1.3e5,
        tie_word_embeddings=True,
    ),
    "qwen3-1.7b": ModelConfig(
        "qwen3", 151936, 2048, 6144, 28, 16, 8, 128, 40960, 1e-6, 1e6, tie_word_embeddings=True
    ),
    "llama-3.2-3b": ModelConfig(
        "llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 32.0), tie_word_embeddings=True,
    ),
    "gemma-3-4b": ModelConfig(
        "gemma3_text", 262208, 2560, 10240, 34, 8, 4, 256, 131072, 1e-6, 1e6,
        RopeScaling("linear", 8.0), tie_word_embeddings=True, sliding_window=1024,
        windowed_rope=Rope(1e4), windowed_layers=tuple(i for i in range(34) if (i + 1) % 6),
    ),
    "mistral-7b": ModelConfig("mistral", 32768, 4096, 14336, 32, 32, 8, 128, 32768, 1e-5, 1e6),
    "llama-3.1-8b": ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 8.0),
    ),
    "qwen3-8b": ModelConfig("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 40960, 1e-6, 1e6),
    "qwen3-14b": ModelConfig("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, 40960, 1e-6, 1e6),
    "gpt-oss-20b": ModelConfig(
        "gpt_oss", 201088, 2880, 2880, 24, 64, 8, 64, 131072, 1e-5, 1.5e5,
        RopeScaling(
            "yarn", 32.0, original_max_position_embeddings=4096, truncate=False,
            attention_factor=1.3465735902799727,
        ),
        sliding_window=128, windowed_layers=tuple(range(0, 24, 2)), n_experts=32,
        experts_per_token=4, expert_size=2880, normalized_shares=True, gate_alpha=1.702,
        gate_limit=7.0,
    ),
    "qwen3-30b-a3b": ModelConfig(
        "qwen3_moe", 151936, 2048, 6144, 48, 32, 4, 128, 40960, 1e-6, 1e6,
        n_experts=128, experts_per_token=8, expert_size=768, normalized_shares=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """What a forward pass needs of a model; a ``DbbFile`` has the same three."""

    config: ModelConfig
    linears: Mapping[str, Weight]
    vectors: Mapping[str, np.ndarray]


def reaching(weights: Weights, positions: int) -> Weights:
    """Random weights with room for so many positions, whatever their shape's model can read."""
    longest = max(positions, weights.config.max_position_embeddings)
    return replace(weights, config=replace(weights.config, max_position_embeddings=longest))


_PLANES = arguments.rule(f"1 to {MAX_PLANES // 2} in steps of a half", planes_of)


def random_weights(shape: str, pairs: float = 1, seed: int = 0) -> Weights:
    """A model of a known shape with random planes and codes, in memory; int8 embedding and head."""
    config, kinds = _planned(shape, pairs)
    rng = np.random.Generator(np.random.PCG64(seed))
    linears = {name: _random(config, name, kind, rng) for name, kind in kinds.items()}
    return Weights(config, linears, dict(_vectors(config)))


def write_random(
    path: str | os.PathLike[str],
    shape: str,
    pairs: float = 1,
    seed: int = 0,
    tokenizer: TokenizerSpec | None = None,
) -> Path:
    """The same as a file, one matrix after another: in memory there is one at a time, of experts
    those of a layer. Without a ``tokenizer`` it only can be measured. A file that is there already
    stays as it is; raises ``EdgeDBError`` if it is another.
    """
    config, kinds = _planned(shape, pairs)
    rng = np.random.Generator(np.random.PCG64(seed))
    if (path := Path(path)).exists():
        found = read_dbb(path, verify=False)
        if found.config != config or {k: t.kind for k, t in found.linears.items()} != kinds:
            raise EdgeDBError(f"{path} is not {shape} at {pairs:g} pairs; name another file")
        return path
    tokenizer = tokenizer or TokenizerSpec("tokenizers", b"{}", None, (2,))
    vectors = dict(_vectors(config))
    with DbbWriter(path, config, tokenizer, kinds, fingerprint="random") as writer:
        for name in writer.remaining:
            made = vectors[name] if name in vectors else _random(config, name, kinds[name], rng)
            writer.put(name, made)
        return writer.finish({"group": 64, "method": "random weights"})


def word_tokenizer(vocab_size: int) -> TokenizerSpec:
    """A tokenizer of so many words that nobody says; token 2 ends a text."""
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(vocab_size)}, "merges": []},
        "pre_tokenizer": bytes_of,
        "decoder": bytes_of,
    }
    return TokenizerSpec("tokenizers", json.dumps(document).encode(), None, (2,))


def bytes_per_token(weights: Weights) -> int:
    """Bytes of weights that decoding one token reads; see ``Footprint.token_bytes``."""
    sizes = {name: weight.nbytes for name, weight in weights.linears.items()}
    return Footprint(weights.config, sizes).token_bytes


def _planned(shape: str, pairs: float) -> tuple[ModelConfig, dict[str, Kind]]:
    config = SHAPES[arguments.choice(*SHAPES)("shape", shape)]
    return config, kinds_at(config, pairs)


def kinds_at(config: ModelConfig, pairs: float) -> dict[str, Kind]:
    """How every matrix is stored at so many pairs in the layers, as the exporter does it."""
    planes: Kind = _PLANES("pairs", pairs)
    program = program_of(config)
    kinds = dict.fromkeys(program.matrices(), planes) | dict.fromkeys(program.tables(), "int8")
    return {k: "float16" if k.endswith(".router") else kind for k, kind in kinds.items()}


def _vectors(config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    for name, size in program_of(config).vectors().items():
        yield name, np.ones(size, np.float32)


def _random(config: ModelConfig, name: str, kind: Kind, rng: np.random.Generator) -> Weight:
    """Outputs are near 1 for inputs near 1, so that no layer overflows."""
    program = program_of(config)
    rows, cols = program.matrices()[name]
    grid = tile_grid(rows, cols)
    if kind == "int8":
        codes = rng.integers(-127, 128, (*grid, INT8_BLOCK_BYTES), np.int8)
        return Int8Tensor(codes, np.full((*grid, TILE), 1 / 73, np.float32), rows, cols)
    if not isinstance(kind, int):
        weight = rng.standard_normal((rows, cols), np.float32) / np.float32(cols**0.5)
        return DenseTensor(weight.astype(np.float16))
    n, half = divmod(kind, 2)
    count = (program.stacks()[name],) if name in program.stacks() else ()
    blocks = _random_blocks((*count, n, *grid, BLOCK_BYTES), 2, rng)
    row_scale = np.full((*count, n + half, rows), 1 / (64 * cols**0.5), np.float32)
    arrays = [blocks, row_scale]
    if half:
        arrays.append(_random_blocks((*count, *grid, HALF_BYTES), 1, rng))
    return (
        Experts(tuple(arrays), rows, cols, kind) if count else linear_of(arrays, rows, cols, kind)
    )


def _random_blocks(shape: tuple[int, ...], n_codes: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes, of which the last ``64 * n_codes`` of a block are valid codes."""
    blocks = rng.integers(0, 256, shape, np.uint8)
    codes = blocks[..., -TILE * n_codes :].view(np.int8)
    np.maximum(codes // 2, -63, out=codes)  # keeps c1 + c2 in -127..127
    return blocks
