"""StableLM 3B, StableLM 2 1.6B (arXiv 2402.17834): Llama with norms that take the mean away, whose
heads turn in a quarter of their channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from .family import Settings
from .llama import FAMILY as LLAMA
from .llama import mlp, turned
from .opt import final


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    h = m.layer_norm(x, "attn_norm")
    y = x + attention(m, c, h, i)
    return y + mlp(m, c, h if c.parallel else m.layer_norm(y, "mlp_norm"))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=c.attention_bias)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, q, k, i)
    return m.linear(m.attention(q, k, v), "attn_out", c.hidden_size)


def features(settings: Settings) -> dict[str, Any]:
    return {"parallel": settings["use_parallel_residual"]}


FAMILY = replace(
    LLAMA,
    layer=layer,
    final=final,
    models="StableLM 3B, StableLM 2 1.6B",
    classes=("StableLmForCausalLM",),
    config=LLAMA.config.but(
        fields={"layer_norm_eps": "norm_eps"},
        honoured="partial_rotary_factor use_parallel_residual",
        harmless="rms_norm_eps use_qkv_bias",  # of biases, tensors decide
    ),
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_parallel_residual": False,
    },
    features=features,
    biases={"attention_bias": "attn_qkv"},
    rope="partial_rotary_factor",
    architecture="stablelm",
    metadata=LLAMA.metadata.but(
        fields={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        honoured="rope.dimension_count",
        harmless="attention.layer_norm_rms_epsilon",
    ),
    interleaved=False,
)
