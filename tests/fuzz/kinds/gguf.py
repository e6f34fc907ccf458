"""GGUF files: metadata and tensors changed one by one and written anew, or bytes changed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from edgedb.model.families import FAMILIES

from ... import checkpoints, gguf_bytes
from ...gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U32, U64
from ...tiny_tokenizers import byte_level_bpe
from .. import mutators
from . import exporting, models
from .kind import Files, Kind

_TYPES = (0, 1, U32, I32, F32, BOOL, STRING, ARRAY, U64, 12, 13, 99)
_NAMES = ("model.gguf", "model-00001-of-00001.gguf", "model-00001-of-00002.gguf")
_FAMILIES = [name for name in exporting.FAMILIES if FAMILIES[name].architecture] + ["llama"]
# Keys that change what is read, with values that some files have.
_MORE: tuple[tuple[str, int, Any], ...] = (
    ("llama.rope.scaling.type", STRING, "linear"),
    ("llama.rope.scaling.type", STRING, "yarn"),
    ("llama.rope.scaling.factor", F32, 4.0),
    ("llama.rope.scale_linear", F32, 2.0),
    ("llama.rope.scaling.original_context_length", U32, 32),
    ("llama.attention.scale", F32, 0.3),
    ("llama.embedding_scale", F32, 2.0),
    ("llama.logit_scale", F32, 0.0),
    ("llama.residual_scale", F32, -1.0),
    ("llama.rope.scaling.attn_factor", F32, 0.5),
    ("llama.attention.causal", BOOL, False),
    ("llama.attention.sliding_window", U32, 13),
    ("llama.expert_count", U32, 8),
    ("llama.expert_used_count", U32, 0),
    ("general.alignment", U32, 64),
    ("general.alignment", U32, 0),
    ("split.count", U32, 2),
    ("split.no", U32, 0),
    ("split.tensors.count", I32, 11),
    ("llama.vocab_size", U32, 300),
    ("tokenizer.ggml.add_bos_token", BOOL, True),
    ("tokenizer.ggml.add_space_prefix", BOOL, False),
    ("tokenizer.ggml.precompiled_charsmap", STRING, "\0\0\0\0"),
    ("tokenizer.ggml.eot_token_id", U32, 5),
    ("tokenizer.ggml.pre", STRING, "llama-bpe"),
    ("tokenizer.chat_template", STRING, "{{ raise_exception('no') }}"),
)


def _hyper_parameters(n_kv_heads: int) -> list[list[Any]]:
    config = exporting.CONFIG
    return [
        ["general.architecture", STRING, "llama"],
        ["llama.block_count", U32, config["num_hidden_layers"]],
        ["llama.context_length", U32, config["max_position_embeddings"]],
        ["llama.embedding_length", U32, config["hidden_size"]],
        ["llama.feed_forward_length", U32, config["intermediate_size"]],
        ["llama.attention.head_count", U32, config["num_attention_heads"]],
        ["llama.attention.head_count_kv", U32, n_kv_heads],
        ["llama.attention.layer_norm_rms_epsilon", F32, 1e-5],
        ["llama.attention.layer_norm_epsilon", F32, 1e-5],
        ["llama.rope.freq_base", F32, 10000.0],
        ["llama.rope.dimension_count", U32, config["head_dim"]],
        ["tokenizer.chat_template", STRING, models.TEMPLATE],
        ["tokenizer.ggml.bos_token_id", U32, 1],
        ["tokenizer.ggml.eos_token_id", U32, 2],
    ]


def _experts(config: dict[str, Any]) -> list[list[Any]]:
    count = config.get("num_experts", config.get("num_local_experts"))
    if count is None:
        return []
    size = config.get("moe_intermediate_size", config["intermediate_size"])
    return [
        ["llama.expert_count", U32, count],
        ["llama.expert_used_count", U32, config["num_experts_per_tok"]],
        ["llama.expert_feed_forward_length", U32, size],
    ]


def _prefix(family: str) -> str:
    return str(FAMILIES[family].architecture)


def _bpe() -> tuple[list[list[Any]], int]:
    raw = json.loads(byte_level_bpe())["model"]
    tokens = sorted(raw["vocab"], key=raw["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["merges"]]
    return [
        ["tokenizer.ggml.model", STRING, "gpt2"],
        ["tokenizer.ggml.pre", STRING, "gpt-2"],
        ["tokenizer.ggml.tokens", ARRAY, [STRING, tokens]],
        ["tokenizer.ggml.token_type", ARRAY, [I32, [3] * 3 + [1] * (len(tokens) - 3)]],
        ["tokenizer.ggml.merges", ARRAY, [STRING, merges]],
    ], len(tokens)


def _sentencepiece() -> tuple[list[list[Any]], int]:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "\u2581",
        "a",
        "\u2581a",
    ]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1]
    return [
        ["tokenizer.ggml.model", STRING, "llama"],
        ["tokenizer.ggml.tokens", ARRAY, [STRING, tokens]],
        ["tokenizer.ggml.token_type", ARRAY, [I32, types]],
        ["tokenizer.ggml.scores", ARRAY, [F32, [-float(i) for i in range(len(tokens))]]],
    ], len(tokens)


class GGUFKind(Kind):
    name = "GGUF"
    share = 5

    def prepare(self, folder: Path) -> None:
        self.bases = []
        for tokenizer, vocab_size in (_bpe(), _sentencepiece()):
            for family in _FAMILIES:
                config, arrays = exporting.checkpoint(family, vocab_size)
                tensors = [
                    [checkpoints.gguf_name(name, family), list(array.shape), 0, array.tobytes()]
                    for name, array in checkpoints.stacked(arrays).items()
                ]
                of_family = _hyper_parameters(config["num_key_value_heads"]) + _experts(config)
                about = json.dumps(of_family).replace("llama", _prefix(family))
                self.bases.append((json.loads(about) + tokenizer, tensors))

    def make(self, rng: Random) -> Files:
        base_entries, base_tensors = rng.choice(self.bases)
        entries = [list(entry) for entry in base_entries]
        tensors = [list(tensor) for tensor in base_tensors]
        way = rng.random()
        if way < 0.55:
            for _ in range(rng.choice((1, 1, 2, 4))):
                _change_entry(rng, entries)
        elif way < 0.85:
            for _ in range(rng.choice((1, 1, 2))):
                _change_tensor(rng, tensors)
        if rng.random() < 0.1:
            return {**_split(rng, entries, tensors), "method": exporting.method_of(rng)}
        written = _written(rng, entries, tensors)
        if way > 0.85:
            written = _damaged(rng, written)
        name = rng.choice(_NAMES) if rng.random() < 0.1 else _NAMES[0]
        return {name: written, "method": exporting.method_of(rng)}

    def use(self, files: Files, folder: Path) -> None:
        method = files["method"].decode()
        names = [name for name in files if name != "method"]  # of a split model, all parts
        for name in names:
            (folder / name).write_bytes(files[name])
        exporting.export_and_use(folder / names[0], folder / "out.dbb", method)


def _split(rng: Random, entries: list[list[Any]], tensors: list[list[Any]]) -> Files:
    """A model in two files, the second of which holds nothing but its tensors and its number."""
    files = {}
    middle = rng.choice((0, 1, len(tensors) // 2, len(tensors)))
    for number, part in enumerate((tensors[:middle], tensors[middle:])):
        about = [
            ["split.no", U32, number],
            ["split.count", U32, 2],
            ["split.tensors.count", I32, len(tensors)],
        ]
        if rng.random() < 0.2:
            _change_entry(rng, about)
        name = f"model-{number + 1:05}-of-00002.gguf"
        files[name] = _written(rng, about if number else entries + about, part)
    if rng.random() < 0.1:
        files.popitem()
    return files


def _change_entry(rng: Random, entries: list[list[Any]]) -> None:
    if rng.random() < 0.2:
        key, kind, value = rng.choice(_MORE)
        prefix = _prefix(rng.choice(_FAMILIES))
        entries.append([key.replace("llama.", f"{prefix}."), kind, value])
        return
    entry = rng.choice(entries)
    way = rng.randrange(6)
    if way == 0:
        entries.remove(entry)
    elif way == 1:
        entry[0] = mutators.text(rng, entry[0])
    elif way == 2:
        entry[1] = rng.choice(_TYPES)
    elif way == 3:
        entries.append(list(entry))
    else:
        entry[2] = mutators.document(rng, entry[2])


def _change_tensor(rng: Random, tensors: list[list[Any]]) -> None:
    tensor = rng.choice(tensors)
    way = rng.randrange(7)
    if way == 0:
        tensors.remove(tensor)
    elif way == 1:
        tensor[0] = mutators.text(rng, tensor[0])
    elif way == 2:
        tensor[1] = mutators.document(rng, tensor[1])
    elif way == 3:
        tensor[2] = rng.choice(
            (1, 2, 3, 6, 7, 8, 10, 14, 15, 20, 24, 30, 34, 39, 99, rng.randrange(50))
        )
    elif way == 4:
        changed = mutators.data(rng, tensor[3][:256])
        tensor[3] = (changed + tensor[3][len(changed) :])[: len(tensor[3])]
    elif way == 5:
        tensors.append(list(tensor))
    else:
        tensors.append([mutators.text(rng, tensor[0]), *tensor[1:]])


def _written(rng: Random, entries: list[list[Any]], tensors: list[list[Any]]) -> bytes:
    infos, data = [], b""
    for name, shape, kind, raw in tensors:
        extents = [n for n in shape if type(n) is int] if isinstance(shape, list) else []
        axes = tuple(n % (1 << 64) for n in extents[:9])
        offset = len(data) + (rng.choice((32, -4, 1 << 40)) if rng.random() < 0.01 else 0)
        named = mutators.encoded(name)
        infos.append(gguf_bytes.tensor(named, axes, kind, offset % (1 << 64)))
        data += raw + bytes(-len(raw) % 32)
    return gguf_bytes.file(
        [_entry(rng, *entry) for entry in entries],
        infos,
        data,
        version=rng.choice((1, 2, 4, 3 << 24)) if rng.random() < 0.02 else 3,
        counts=(len(infos) + 1, len(entries) - 1) if rng.random() < 0.02 else None,
    )


def _entry(rng: Random, key: Any, kind: int, value: Any) -> bytes:
    """One entry whose value is forced into the type; what cannot be becomes some bytes."""
    named = mutators.encoded(str(key))
    try:
        if kind != ARRAY:
            return gguf_bytes.entry(named, kind, _fitting(kind, value))
        kind_of_items, items = value
        count = rng.choice((1 << 40, len(items) + 1, 0)) if rng.random() < 0.02 else None
        fitting = [_fitting(kind_of_items, item) for item in items]
        return gguf_bytes.entry(named, kind, gguf_bytes.array(kind_of_items, fitting, count=count))
    except (TypeError, ValueError, KeyError, OverflowError, struct.error):
        return gguf_bytes.text(named) + struct.pack("<I", kind % (1 << 32)) + rng.randbytes(8)


def _fitting(kind: int, value: Any) -> Any:
    if kind == STRING:
        return value if isinstance(value, bytes) else mutators.encoded(str(value))
    if kind == F32:
        return float(value)
    if kind == BOOL:
        return bool(value)
    bits = {0: 8, 1: 8, 2: 16, 3: 16, U32: 32, I32: 32, U64: 64}[kind]
    whole = int(value) % (1 << bits)
    return whole - (1 << bits) if kind in (1, 3, I32) and whole >> (bits - 1) else whole


def _damaged(rng: Random, written: bytes) -> bytes:
    head = rng.choice((64, 400, 4000, len(written)))
    return mutators.data(rng, written[:head]) + written[head:]
