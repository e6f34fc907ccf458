"""Small model files for tests, and damaged copies of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgedb.format.container import CRC_START, PREFIX
from edgedb.format.packing import pack_half, pack_int8, pack_planes, quantize_int8
from edgedb.format.tensors import DenseTensor, Kind, LinearTensor, PairTensor
from edgedb.model.config import ModelConfig
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.text.spec import TokenizerSpec

# Nothing is a multiple of 64, so that every tile and group is padded and filler tensors appear.
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=70,
    hidden_size=24,
    intermediate_size=65,
    n_layers=2,
    n_heads=3,
    n_kv_heads=1,
    head_dim=8,
    max_position_embeddings=64,
)
TOKENIZER = TokenizerSpec(
    kind="sentencepiece",
    data=b"not a real tokenizer",
    bos_id=1,
    eos_ids=(2,),
    chat_template="{{ messages }}",
    special_tokens={"bos_token": "<s>"},
)
KINDS: dict[str, Kind] = {
    "embedding": "int8",
    "layers.0.attn_qkv": 2,
    "layers.0.attn_out": 4,
    "layers.0.mlp_gate_up": 6,
    "layers.0.mlp_down": "float16",
    "layers.1.attn_qkv": "float32",
    "layers.1.attn_out": "int8",
    "layers.1.mlp_gate_up": 3,
    "layers.1.mlp_down": 4,
    "head": "int8",
}


def random_planes(rows: int, cols: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """b1, b2 bool ``[rows, cols]`` and c1, c2 int8 ``[rows, groups]`` as one FDB pair has them."""
    groups = -(-cols // 64)
    c1 = rng.integers(-127, 128, (rows, groups))
    c2 = rng.integers(np.maximum(-127, -127 - c1), np.minimum(127, 127 - c1) + 1)
    b1, b2 = rng.random((2, rows, cols)) < 0.4
    return b1, b2, c1.astype(np.int8), c2.astype(np.int8)


def random_linear(
    kind: Kind, rows: int, cols: int, rng: np.random.Generator | None = None
) -> LinearTensor:
    """A matrix of random weights stored as ``kind``."""
    rng = rng or np.random.default_rng(0)
    if kind == "int8":
        return pack_int8(*quantize_int8(rng.standard_normal((rows, cols), np.float32)))
    if isinstance(kind, str):
        return DenseTensor(rng.standard_normal((rows, cols)).astype(kind))
    blocks = [pack_planes(*random_planes(rows, cols, rng)) for _ in range(kind // 2)]
    half = pack_half(*random_planes(rows, cols, rng)[::2]) if kind % 2 else None
    scale = rng.standard_normal((len(blocks) + kind % 2, rows), np.float32) / 64
    return PairTensor(np.stack(blocks), scale, rows, cols, half)


def content(name: str) -> LinearTensor | np.ndarray:
    """What ``write_model`` stores as ``name``: the same on every call."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shapes = program_of(CONFIG).matrices()
    if name in shapes:
        return random_linear(KINDS[name], *shapes[name], rng)
    return rng.random(program_of(CONFIG).vectors()[name], np.float32)


def write_model(path: Path, fingerprint: str = "", stop_after: int | None = None) -> Path:
    """Write the small model, or only its first ``stop_after`` missing tensors."""
    with DbbWriter(path, CONFIG, TOKENIZER, KINDS, fingerprint=fingerprint) as writer:
        for name in writer.remaining[:stop_after]:
            writer.put(name, content(name), {"error": 0.25})
        if stop_after is None:
            writer.finish({"group": 64, "teacher": "none"})
    return path


EXPERTS = replace(
    CONFIG,
    model_type="qwen3_moe",
    n_experts=3,
    experts_per_token=2,
    expert_size=34,
    normalized_shares=True,
    dense_layers=(1,),
)
_KIND_OF: dict[str, Kind] = {
    "attn_qkv": 2,
    "attn_out": 2,
    "router": "float16",
    "experts_gate_up": 3,
    "experts_down": "int8",
    "mlp_gate_up": 4,
    "mlp_down": 2,
    "embedding": "int8",
    "head": "int8",
}
EXPERT_KINDS: dict[str, Kind] = {
    name: _KIND_OF[name.rpartition(".")[2]] for name in program_of(EXPERTS).matrices()
}


def write_experts(path: Path, fingerprint: str = "", stop_after: int | None = None) -> Path:
    """A small model whose first layer has experts, or only its first ``stop_after`` matrices, and
    of the stack behind them one expert."""
    program, rng = program_of(EXPERTS), np.random.default_rng(0)
    shapes, stacks = program.matrices(), program.stacks()
    kinds = EXPERT_KINDS
    with DbbWriter(path, EXPERTS, TOKENIZER, kinds, fingerprint=fingerprint) as writer:
        for name in writer.remaining[:stop_after]:
            if name not in shapes:
                writer.put(name, np.ones(program.vectors()[name], np.float32))
            elif name not in stacks:
                writer.put(name, random_linear(kinds[name], *shapes[name], rng))
            else:
                for i in range(stacks[name]):
                    writer.put_expert(name, i, random_linear(kinds[name], *shapes[name], rng))
                writer.end_stack(name, {"error": 0.5})
        if stop_after is None:
            writer.finish({"group": 64})
        elif (name := writer.remaining[0]) in stacks:
            writer.put_expert(name, 0, random_linear(kinds[name], *shapes[name], rng))
    return path


def edit_file(
    source: Path,
    target: Path,
    header: Callable[[dict[str, Any]], None] | None = None,
    data: Callable[[bytearray, dict[str, Any]], None] | None = None,
) -> Path:
    """Copy a file with a changed header or data whose checksums are right again.

    So the checks behind the checksums are reached, as with a hostile file.
    """
    raw = source.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    document = json.loads(raw[8:start])
    body = bytearray(raw[start:])
    if data:
        data(body, document)
        metadata = document["__metadata__"]
        checksums = json.loads(metadata["checksums"])
        for name, entry in document.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                checksums[name] = f"{zlib.crc32(body[begin:end]):08x}"
        metadata["checksums"] = json.dumps(checksums)
    if header:
        header(document)
    target.write_bytes(seal(json.dumps(document, separators=(",", ":"))) + body)
    return target


def seal(text: str) -> bytes:
    """Length, header ``text`` padded to 64 bytes, and its checksum in place."""
    raw = text.encode()
    assert raw.startswith(PREFIX)
    size = -(-(8 + len(raw)) // 64) * 64
    zeroed = bytearray((size - 8).to_bytes(8, "little") + raw.ljust(size - 8))
    zeroed[CRC_START : CRC_START + 8] = b"00000000"
    zeroed[CRC_START : CRC_START + 8] = b"%08x" % zlib.crc32(zeroed)
    return bytes(zeroed)
