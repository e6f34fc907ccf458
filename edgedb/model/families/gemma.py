"""Gemma 1, CodeGemma (arXiv 2403.08295): Llama with GELU gates, and an embedding that is multiplied
by the square root of its width."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import activation_of
from ..config import ModelConfig
from ..keys import needs, only
from .family import Fold, Settings
from .llama import FAMILY as LLAMA
from .llama import attention

CAUSAL = needs("attention that is not causal", only(False, None))


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.rms_norm(x, "mlp_norm"))


def mlp(m: Recorder, c: ModelConfig, x: Value) -> Value:
    gate_up = m.linear(x, "mlp_gate_up", 2 * c.intermediate_size)
    gate, up = gate_up.split(c.intermediate_size, c.intermediate_size)
    opened = m.activation(c.activation or "gelu_tanh", gate)
    return m.linear(opened * up, "mlp_down", c.hidden_size)


def features(settings: Settings) -> dict[str, Any]:
    return activation_of(settings, "gelu_tanh")


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """The head takes the embedding as it is. So the residual stream is divided by the factor
    instead: what is added to it is divided too, and a norm does not see it but in ``eps``."""
    scale = math.sqrt(config.hidden_size)
    return Fold(
        replace(config, norm_eps=config.norm_eps / config.hidden_size),
        {"attn_out": 1 / scale, "mlp_down": 1 / scale},
    )


FAMILY = replace(
    LLAMA,
    layer=layer,
    models="Gemma 1 2B and 7B, CodeGemma",
    classes=("GemmaForCausalLM",),
    config=LLAMA.config.but(honoured="hidden_act", refused={"use_bidirectional_attention": CAUSAL}),
    defaults={
        **LLAMA.defaults,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    },
    # Gemma 1 was published with a hidden_act that its hidden_activation replaced.
    aliases={"hidden_activation": "hidden_act"},
    features=features,
    biases={"attention_bias": "attn_qkv"},
    fold=fold,
    architecture="gemma",
    interleaved=False,
)
