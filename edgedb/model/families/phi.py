"""Phi-1, Phi-1.5, Phi-2 (arXiv 2309.05463): one norm for attention and feed-forward, which run in
parallel; a bias wherever a matrix is, the head's too; heads turn in half of their channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, OLDER_METADATA, activation_of
from ..config import ModelConfig
from ..keys import names
from .family import Settings
from .llama import first, turned
from .opt import FAMILY as OPT
from .opt import mlp


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    h = m.layer_norm(x, "attn_norm")
    return x + attention(m, c, h, i) + mlp(m, c, h, "gelu_tanh")


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=True)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, q, k, i)
    return m.linear(m.attention(q, k, v), "attn_out", c.hidden_size, bias=True)


def head(m: Recorder, c: ModelConfig, x: Value) -> Value:
    name = "embedding" if c.tie_word_embeddings else "head"
    return m.linear(x, name, c.vocab_size, bias=True)


def features(settings: Settings) -> dict[str, Any]:
    return activation_of(settings, "gelu_tanh")


FAMILY = replace(
    OPT,
    first=first,
    layer=layer,
    head=head,
    models="Phi-1, Phi-1.5, Phi-2",
    classes=("PhiForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_eps": "norm_eps", "num_key_value_heads": "n_kv_heads"},
        honoured="partial_rotary_factor",
    ),
    defaults={
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    nulls=names(""),
    aliases={},
    features=features,
    rope="partial_rotary_factor",
    architecture="phi2",
    metadata=OLDER_METADATA.but(
        fields={"attention.layer_norm_epsilon": "layer_norm_eps"},
        honoured="rope.dimension_count",
    ),
)
