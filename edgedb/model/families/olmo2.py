"""OLMo 2 (arXiv 2501.00656): Llama with its norms behind attention and feed-forward, not before
them, and a norm of all queries at once, and of all keys."""

from __future__ import annotations

from dataclasses import replace

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from .llama import FAMILY as LLAMA
from .llama import mlp, turned


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + m.rms_norm(attention(m, c, x, i), "attn_post_norm")
    return x + m.rms_norm(mlp(m, c, x), "mlp_post_norm")


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=c.attention_bias)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, m.rms_norm(q, "q_norm"), m.rms_norm(k, "k_norm"), i)
    attended = m.attention(q, k, v, window=c.window(i), cap=c.score_cap)
    return m.linear(attended, "attn_out", c.hidden_size, bias=c.attention_bias)


FAMILY = replace(
    LLAMA,
    layer=layer,
    models="OLMo 2 1B to 32B",
    classes=("Olmo2ForCausalLM",),
    defaults={**LLAMA.defaults, "rms_norm_eps": 1e-5},
    biases={"attention_bias": "attn_qkv"},
    architecture="olmo2",  # OLMo 3's too, whose window is refused
    interleaved=False,
)
