"""What is done with a checkpoint: it is exported, and what was written must load and run."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgedb.convert.export import export
from edgedb.convert.sources import layouts, open_source
from edgedb.convert.sources.names import HUGGING_FACE, split_layer, stored_names
from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError
from edgedb.model import families
from edgedb.model.checkpoint_config import read_config

from ... import checkpoints
from . import models
from .kind import WrongMessage

CONFIG: dict[str, Any] = {
    **checkpoints.CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
# What the families' configurations have beside those of Llama.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "gemma": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 12},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
    },
    "ministral3": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 5},
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
    "phi3": {
        "original_max_position_embeddings": 16,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": [1.0, 2.0, 3.0],
            "short_factor": [1.0, 1.0, 1.5],
        },
        "sliding_window": 5,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": False},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt_oss": {
        "num_key_value_heads": 4,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
    },
    "bloom": {"n_head": 4, "n_layer": 1},
    "cohere2": {"sliding_window": 5, "layer_types": ["sliding_attention"]},
    "gpt_neox": {"rotary_pct": 0.5, "use_parallel_residual": True},
    "phi": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "falcon": {"multi_query": False},
    "gptj": {"rotary_dim": 4},
    "starcoder2": {"sliding_window": 5},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_inner": 64, "n_layer": 1, "n_positions": 64},
    "opt": {"ffn_dim": 64, "activation_function": "relu"},
    "smollm3": {"no_rope_layers": [0]},
}
# Those whose tensors have other names, and shapes, than Llama's.
_OLDER = ("bloom", "cohere2", "gpt2", "gpt_neox", "gpt_oss", "gptj", "opt", "phi")
_OLDER += ("falcon", "stablelm", "starcoder2")
_METHODS = ("dense32", "dense32", "dense16", "int8", "rtn")


def checkpoint(family: str, vocab_size: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and tensors, under Hugging Face's names, of a small model."""
    config = {**CONFIG, **FAMILIES[family], "model_type": family, "vocab_size": vocab_size}
    if family in _OLDER:
        return _older(config)
    tensors = checkpoints.weights(config)
    layer = "model.layers.0."
    attention = f"{layer}self_attn."
    if family == "qwen2":
        for name in "qkv":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_proj.bias"] = np.full(rows, 0.1, np.float32)
    if family == "phi3":
        for fused, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            room, name = f"{layer}{fused.split('.')[0]}.", f"{layer}{fused}_proj.weight"
            tensors[name] = np.concatenate(
                [tensors.pop(f"{room}{part}_proj.weight") for part in parts]
            )
    if family in ("gemma2", "gemma3_text"):
        for name in ("pre", "post"):
            norm = tensors[f"{layer}input_layernorm.weight"].copy()
            tensors[f"{layer}{name}_feedforward_layernorm.weight"] = norm
    if family in ("gemma3_text", "qwen3", "qwen3_moe"):
        for name in "qk":
            tensors[f"{attention}{name}_norm.weight"] = np.ones(config["head_dim"], np.float32)
    if count := config.get("num_experts", config.get("num_local_experts")):
        _divide(tensors, family, count, config.get("moe_intermediate_size", 64))
    if family == "olmoe":
        for name in "qk":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_norm.weight"] = np.ones(rows, np.float32)
    if family in ("olmo2", "olmo3"):
        behind = tensors.pop(f"{layer}input_layernorm.weight")
        tensors[f"{layer}post_feedforward_layernorm.weight"] = behind
        for name in "qk":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_norm.weight"] = np.ones(rows, np.float32)
    return config, tensors


def _divide(tensors: dict[str, np.ndarray], family: str, count: int, size: int) -> None:
    """Experts of ``size`` in the place of the feed-forward."""
    mlp = "model.layers.0.mlp."
    gate, up, down = (tensors.pop(f"{mlp}{x}_proj.weight") for x in ("gate", "up", "down"))
    parts = {"gate_proj": gate[:size], "up_proj": up[:size], "down_proj": down[:, :size]}
    if family == "mixtral":
        mlp = "model.layers.0.block_sparse_moe."
        parts = dict(zip(("w1", "w3", "w2"), parts.values(), strict=True))
    tensors[f"{mlp}gate.weight"] = gate[:count].copy()
    for expert in range(count):
        for name, part in parts.items():
            tensors[f"{mlp}experts.{expert}.{name}.weight"] = (1 + expert) * part


def _older(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Whatever the family's program asks for."""
    family = config["model_type"]
    aliases = families.FAMILIES[family].aliases
    left_out = {"rms_norm_eps", "rope_theta"}
    left_out |= {name for key, name in aliases.items() if key in FAMILIES[family]}
    config = {key: value for key, value in config.items() if key not in left_out}
    config["num_key_value_heads"] = 4  # a key for every query: all parts have as many rows
    fold, _ = read_config(config)
    program, names = families.program_of(fold.config), HUGGING_FACE[family]
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    stacks = program.stacks()
    vectors = {
        name: (length // stacks.get(name.removesuffix(".bias"), 1),)
        for name, length in program.vectors().items()
    }
    for name, shape in {**program.matrices(), **vectors}.items():
        layout = layouts.HUGGING_FACE.get(family, {}).get(
            split_layer(name)[1].removesuffix(".bias")
        )
        parts = stored_names(names, name)
        own = (shape[0] // len(parts), *shape[1:])
        if layout is not None:
            own = layout.stored(own)
        if (count := stacks.get(name.removesuffix(".bias"))) is not None:
            own = (count, *own)
        tensors |= {part: rng.normal(0, 0.1, own).astype(np.float32) for part in parts}
    return config, tensors


def method_of(rng: Random) -> bytes:
    """How to store the weights; it is part of an input."""
    return rng.choice(_METHODS).encode()


def export_and_use(source: Path, out: Path, method: str) -> None:
    """Export ``source`` and use the file. What is written must never be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a key that is on no list
        opened = open_source(source)
        options = Options(method=method, pairs=1, calibration="none")
        export(opened, out, options, threads=1)
        try:
            model = models.load(out)
        except EdgeDBError as error:
            raise WrongMessage(f"the exporter wrote what edgedb refuses: {error}") from None
    models.use(model)  # it may overflow, or its template refuse a conversation: in one line
