"""Mixtral (arXiv 2401.04088): Llama whose feed-forward is a mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import names
from .family import Settings
from .llama import FAMILY as LLAMA
from .llama import attention
from .mistral import FAMILY as MISTRAL
from .mistral import window_of
from .mixture import experts_of, feed_forward, with_experts


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + feed_forward(m, c, m.rms_norm(x, "mlp_norm"), i)


def features(settings: Settings) -> dict[str, Any]:
    experts = experts_of(settings, 8, size="intermediate_size", normalized=True)
    return {"sliding_window": window_of(settings), **experts}


_CONFIG, _METADATA = with_experts(MISTRAL, "num_local_experts", "", {})

FAMILY = replace(
    LLAMA,
    layer=layer,
    models="Mixtral 8x7B, 8x22B",
    classes=("MixtralForCausalLM",),
    config=_CONFIG,
    defaults={
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    biases={},
    metadata=_METADATA,
)
