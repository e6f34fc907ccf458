"""Qwen2, Qwen2.5 (arXiv 2407.10671): Llama with biases in the query, key and value projections."""

from __future__ import annotations

from ...config import ModelConfig
from ...ops.program import Recorder, Value
from .llama import final, first, head, mlp

__all__ = ["final", "first", "head", "layer"]


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.rms_norm(x, "mlp_norm"))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=True)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = m.rope(q, c.n_heads), m.rope(k, c.n_kv_heads)
    return m.linear(m.attention(q, k, v, window=c.window(i)), "attn_out", c.hidden_size)
