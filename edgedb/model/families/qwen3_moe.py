"""Qwen3 30B-A3B and 235B-A22B (arXiv 2505.09388): Qwen3 with a mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from .family import Settings
from .llama import FAMILY as LLAMA
from .mistral import window_of
from .mixture import experts_of, feed_forward, with_experts
from .qwen3 import FAMILY as QWEN3
from .qwen3 import attention


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + feed_forward(m, c, m.rms_norm(x, "mlp_norm"), i)


def features(settings: Settings) -> dict[str, Any]:
    """A window is that of every layer."""
    window = window_of(settings) if settings["use_sliding_window"] else None
    normalized = settings["norm_topk_prob"]
    experts = experts_of(settings, 128, size="moe_intermediate_size", normalized=normalized)
    return {"sliding_window": window, **experts}


_CONFIG, _METADATA = with_experts(
    QWEN3,
    "num_experts",
    "decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob",
    {"expert_feed_forward_length": "moe_intermediate_size"},
)

FAMILY = replace(
    QWEN3,
    layer=layer,
    models="Qwen3 30B-A3B, 235B-A22B",
    classes=("Qwen3MoeForCausalLM",),
    config=_CONFIG,
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    features=features,
    architecture="qwen3moe",
    metadata=_METADATA,
    implied=lambda settings: {"norm_topk_prob": True},
)
