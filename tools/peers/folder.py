"""The teacher as a Hugging Face folder, which is what other packages read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgedb.convert.sources import Source
from edgedb.convert.sources.names import HUGGING_FACE, split_layer, stored_names
from edgedb.convert.sources.source import Float32
from edgedb.errors import EdgeDBError
from edgedb.model.families import program_of


def write_folder(source: Source, folder: Path) -> Path:
    """Write config.json, float32 model.safetensors and the tokenizer of ``source``.

    Raises ``EdgeDBError`` for a SentencePiece tokenizer, which would need its model file instead.
    """
    spec = source.tokenizer_spec
    if spec.kind != "tokenizers":
        raise EdgeDBError(
            "the teacher's tokenizer is a SentencePiece model; other packages are given a "
            "tokenizer.json: take a teacher that has one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in source.config_dict.items() if value is not None}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "bos_token_id": spec.bos_id,
        "eos_token_id": list(spec.eos_ids),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_bytes(spec.data)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", **spec.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    save_file(split_tensors(source), folder / "model.safetensors", {"format": "pt"})
    return folder


def split_tensors(source: Source) -> dict[str, Float32]:
    """Every tensor under Hugging Face's names: q, k, v and gate, up apart."""
    config = source.config
    parts = {
        "attn_qkv": (config.q_size, config.kv_size, config.kv_size),
        "mlp_gate_up": (config.intermediate_size, config.intermediate_size),
    }
    tensors = {}
    for name in (*program_of(config).matrices(), *program_of(config).vectors()):
        kind = split_layer(name)[1]
        names = stored_names(HUGGING_FACE[config.model_type], name)
        edges = np.cumsum(parts.get(kind, ()))[:-1]
        for stored, rows in zip(names, np.split(source.tensor(name), edges), strict=True):
            tensors[stored] = np.ascontiguousarray(rows, np.float32)
    return tensors
