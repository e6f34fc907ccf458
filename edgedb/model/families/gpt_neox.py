"""GPT-NeoX (arXiv 2204.06745), Pythia: attention and feed-forward in parallel, each behind a norm
of its own; heads turn in a quarter of their channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, OLDER_METADATA, activation_of
from ..config import ModelConfig
from .family import Settings
from .llama import attention, first
from .opt import FAMILY as OPT
from .opt import mlp


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    y = x + attention(m, c, m.layer_norm(x, "attn_norm"), i)
    return y + mlp(m, c, m.layer_norm(x if c.parallel else y, "mlp_norm"), "gelu")


def features(settings: Settings) -> dict[str, Any]:
    return {"parallel": settings["use_parallel_residual"], **activation_of(settings, "gelu")}


FAMILY = replace(
    OPT,
    first=first,
    layer=layer,
    models="GPT-NeoX, Pythia",
    classes=("GPTNeoXForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_eps": "norm_eps"},
        honoured="partial_rotary_factor rotary_pct use_parallel_residual",
        harmless="attention_bias",  # tensors decide
    ),
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
    },
    aliases={"rotary_emb_base": "rope_theta"},
    features=features,
    biases={"attention_bias": "attn_qkv"},
    rope="partial_rotary_factor",
    architecture="gptneox",
    metadata=OLDER_METADATA.but(
        fields={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        honoured="rope.dimension_count",
    ),
)
