"""GPT-2 (Radford et al. 2019), DistilGPT-2, Cerebras-GPT: OPT's pass with another activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, OLDER_METADATA, activation_of
from ..config import ModelConfig
from ..keys import needs, only
from .family import Settings
from .opt import FAMILY as OPT
from .opt import attention, mlp


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.layer_norm(x, "attn_norm"))
    return x + mlp(m, c, m.layer_norm(x, "mlp_norm"), "gelu_tanh")


def features(settings: Settings) -> dict[str, Any]:
    return activation_of(settings, "gelu_tanh")


def derived(settings: Settings) -> dict[str, Any]:
    """The feed-forward is four times as wide where nothing says how wide."""
    hidden_size = settings.get("hidden_size")
    return {"intermediate_size": 4 * hidden_size} if type(hidden_size) is int else {}


FAMILY = replace(
    OPT,
    layer=layer,
    models="GPT-2, DistilGPT-2, Cerebras-GPT",
    classes=("GPT2LMHeadModel",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_epsilon": "norm_eps"},
        refused={
            "scale_attn_by_inverse_layer_idx": needs("scores scaled by layer", only(False)),
            "scale_attn_weights": needs("scores that are not scaled", only(True)),
        },
        harmless="n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout "
        "summary_proj_to_labels summary_type summary_use_proj",
    ),
    defaults={
        **OPT.defaults,
        "hidden_act": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 1024,
    },
    aliases={
        "activation_function": "hidden_act",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    },
    derived=derived,
    features=features,
    architecture="gpt2",
    metadata=OLDER_METADATA,
)
