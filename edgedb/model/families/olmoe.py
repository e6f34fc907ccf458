"""OLMoE 1B-7B (arXiv 2409.02060): Llama with a norm of all queries at once and of all keys, and a
mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import names
from .family import Settings
from .llama import FAMILY as LLAMA
from .mixture import experts_of, feed_forward, with_experts
from .olmo2 import attention


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + feed_forward(m, c, m.rms_norm(x, "mlp_norm"), i)


def features(settings: Settings) -> dict[str, Any]:
    return experts_of(settings, 64, size="intermediate_size", normalized=settings["norm_topk_prob"])


_CONFIG, _METADATA = with_experts(LLAMA, "num_experts", "norm_topk_prob", {})

FAMILY = replace(
    LLAMA,
    layer=layer,
    models="OLMoE 1B-7B",
    classes=("OlmoeForCausalLM",),
    config=_CONFIG,
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-5,
    },
    nulls=names("is_causal"),
    features=features,
    biases={"attention_bias": "attn_qkv"},
    architecture="olmoe",
    metadata=_METADATA,
    interleaved=False,
)
