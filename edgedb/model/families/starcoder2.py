"""StarCoder2 3B, 7B, 15B (arXiv 2402.19173): Llama's attention with a window, between norms that
take the mean away; no gate, and biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, OLDER_METADATA, activation_of
from ..config import ModelConfig
from ..keys import names, needs, only
from .family import Settings
from .llama import attention, first
from .mistral import WINDOW, window_of
from .opt import FAMILY as OPT
from .opt import mlp


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.layer_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.layer_norm(x, "mlp_norm"), "gelu_tanh", bias=c.mlp_bias)


def features(settings: Settings) -> dict[str, Any]:
    return {"sliding_window": window_of(settings), **activation_of(settings, "gelu_tanh")}


FAMILY = replace(
    OPT,
    first=first,
    layer=layer,
    models="StarCoder2 3B, 7B, 15B",
    classes=("Starcoder2ForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"norm_epsilon": "norm_eps", "num_key_value_heads": "n_kv_heads"},
        refused={
            **WINDOW,
            "mlp_type": needs("another feed-forward", only("default")),
            "norm_type": needs("other norms", only("layer_norm")),
        },
        harmless="embedding_dropout residual_dropout use_bias",  # of biases, tensors decide
    ),
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    nulls=names("sliding_window"),
    aliases={},
    features=features,
    biases={"attention_bias": "attn_qkv", "mlp_bias": "mlp_up"},
    architecture="starcoder2",
    metadata=OLDER_METADATA.but(
        fields={
            "attention.layer_norm_epsilon": "norm_epsilon",
            "attention.sliding_window": "sliding_window",
        }
    ),
)
