"""What is done with a checkpoint: it is exported, and what was written must load and run."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError

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
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
    },
    "olmo2": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": False},
}
_METHODS = ("dense32", "dense32", "dense16", "int8", "rtn")


def checkpoint(family: str, vocab_size: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and tensors, under Hugging Face's names, of a small model."""
    config = {**CONFIG, **FAMILIES[family], "model_type": family, "vocab_size": vocab_size}
    tensors = checkpoints.weights(config)
    layer = "model.layers.0."
    attention = f"{layer}self_attn."
    if family == "qwen2":
        for name in "qkv":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_proj.bias"] = np.full(rows, 0.1, np.float32)
    if family == "qwen3":
        for name in "qk":
            tensors[f"{attention}{name}_norm.weight"] = np.ones(config["head_dim"], np.float32)
    if family == "olmo2":
        behind = tensors.pop(f"{layer}input_layernorm.weight")
        tensors[f"{layer}post_feedforward_layernorm.weight"] = behind
        for name in "qk":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_norm.weight"] = np.ones(rows, np.float32)
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
