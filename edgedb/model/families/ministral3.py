"""Ministral 3 (3B, 8B, 14B): Llama whose queries grow with the logarithm of their position."""

from __future__ import annotations

from dataclasses import replace

from ..keys import names
from .llama import FAMILY as LLAMA
from .mistral import WINDOW, features

FAMILY = replace(
    LLAMA,
    models="Ministral 3 3B to 14B",
    classes=("Ministral3ForCausalLM",),
    config=LLAMA.config.but(refused=WINDOW),
    defaults={
        **LLAMA.defaults,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    biases={},
    rope="llama_4_scaling_beta",
    architecture="mistral3",
    metadata=LLAMA.metadata.but(
        honoured="attention.temperature_scale rope.scaling.yarn_log_multiplier"
    ),
)
