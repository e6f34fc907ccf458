"""Qwen3 (arXiv 2505.09388): Llama with a norm on every head of the queries and the keys."""

from __future__ import annotations

from dataclasses import replace

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from .llama import mlp, turned
from .qwen2 import FAMILY as QWEN2


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.rms_norm(x, "mlp_norm"))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=c.attention_bias)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = m.rms_norm(q, "q_norm", heads=c.n_heads), m.rms_norm(k, "k_norm", heads=c.n_kv_heads)
    q, k = turned(m, c, q, k, i)
    attended = m.attention(q, k, v, window=c.window(i), cap=c.score_cap)
    return m.linear(attended, "attn_out", c.hidden_size, bias=c.attention_bias)


FAMILY = replace(
    QWEN2,
    layer=layer,
    models="Qwen3 0.6B to 32B",
    classes=("Qwen3ForCausalLM",),
    defaults={**QWEN2.defaults, "head_dim": 128, "num_key_value_heads": 32},
    biases={"attention_bias": "attn_qkv"},
    architecture="qwen3",
)
