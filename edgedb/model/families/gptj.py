"""GPT-J 6B: one norm for attention and feed-forward, which run in parallel; no biases in the
attention, one in the head. Its rotary embedding turns neighbours in some channels of a head, and is
Llama's once rows are in its order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, activation_of
from ..config import ModelConfig
from .family import Settings
from .gpt2 import FAMILY as GPT2
from .llama import attention, first
from .opt import mlp
from .phi import head


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    h = m.layer_norm(x, "attn_norm")
    return x + attention(m, c, h, i) + mlp(m, c, h, "gelu_tanh")


def features(settings: Settings) -> dict[str, Any]:
    return {"rotary_dim": settings["rotary_dim"], **activation_of(settings, "gelu_tanh")}


FAMILY = replace(
    GPT2,
    first=first,
    layer=layer,
    head=head,
    models="GPT-J 6B",
    classes=("GPTJForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_epsilon": "norm_eps"},
        honoured="rotary_dim",
        harmless="n_ctx rotary scale_attn_weights summary_activation summary_first_dropout "
        "summary_proj_to_labels summary_type summary_use_proj",
    ),
    defaults={
        **GPT2.defaults,
        "max_position_embeddings": 2048,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
    features=features,
    architecture=None,
)
