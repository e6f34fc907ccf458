"""Granite 3 (IBM): Llama's pass, with multipliers that are folded into its weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...errors import FormatError
from ..config import ModelConfig
from .family import Fold, Settings
from .llama import FAMILY as LLAMA


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """Exactly what the multipliers do.

    The embedding is a head as well, so it stays. Instead the whole residual stream is divided by
    ``embedding_multiplier``: what is added to it is divided too, and a norm does not see it but in
    ``eps``.
    """
    embedding, residual, scores, logits = (
        positive(settings, key)
        for key in (
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "logits_scaling",
        )
    )
    of_queries = np.ones(config.qkv_size)
    of_queries[: config.q_size] = scores * math.sqrt(config.head_dim)
    return Fold(
        replace(config, norm_eps=config.norm_eps / embedding**2),
        {
            "attn_qkv": of_queries,
            "attn_out": residual / embedding,
            "mlp_down": residual / embedding,
            "final_norm": 1 / logits,
        },
    )


def positive(settings: Settings, key: str) -> float:
    value = settings[key]
    if type(value) not in (int, float) or not 1e-6 < value < 1e6:
        raise FormatError(f"config.json: {key} = {value!r}, expected a positive number")
    return float(value)


_MULTIPLIERS = "attention_multiplier embedding_multiplier logits_scaling residual_multiplier"

FAMILY = replace(
    LLAMA,
    models="Granite 3.x",
    classes=("GraniteForCausalLM",),
    config=LLAMA.config.but(honoured=_MULTIPLIERS),
    defaults={**LLAMA.defaults, **dict.fromkeys(_MULTIPLIERS.split(), 1.0)},
    fold=fold,
    architecture="granite",
    metadata=LLAMA.metadata.but(
        fields={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "logit_scale": "logits_scaling",
            "residual_scale": "residual_multiplier",
        }
    ),
)
