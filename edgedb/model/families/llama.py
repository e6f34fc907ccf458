"""Llama 1, 2, 3 (arXiv 2302.13971), and what calls itself so: SmolLM2, TinyLlama, Vicuna."""

from __future__ import annotations

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import LLAMA_CONFIG, LLAMA_METADATA
from ..config import ModelConfig
from ..keys import names
from ..rope import turns_of
from .family import Family


def first(m: Recorder, c: ModelConfig) -> Value:
    return m.embed("embedding", c.vocab_size, c.hidden_size)


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.rms_norm(x, "mlp_norm"))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=c.attention_bias)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, q, k, i)
    attended = m.attention(q, k, v, window=c.window(i), cap=c.score_cap)
    return m.linear(attended, "attn_out", c.hidden_size, bias=c.attention_bias)


def turned(m: Recorder, c: ModelConfig, q: Value, k: Value, i: int) -> tuple[Value, Value]:
    """Queries and keys as layer ``i`` turns them."""
    of_q, of_k = turns_of(c, i)
    return (
        q if of_q is None else m.rope(q, c.n_heads, of_q),
        k if of_k is None else m.rope(k, c.n_kv_heads, of_k),
    )


def mlp(m: Recorder, c: ModelConfig, x: Value) -> Value:
    gate_up = m.linear(x, "mlp_gate_up", 2 * c.intermediate_size, bias=c.mlp_bias)
    gate, up = gate_up.split(c.intermediate_size, c.intermediate_size)
    return m.linear(m.silu(gate) * up, "mlp_down", c.hidden_size, bias=c.mlp_bias)


def final(m: Recorder, c: ModelConfig, x: Value) -> Value:
    return m.rms_norm(x, "final_norm")


def head(m: Recorder, c: ModelConfig, x: Value) -> Value:
    return m.linear(x, "embedding" if c.tie_word_embeddings else "head", c.vocab_size)


FAMILY = Family(
    first,
    layer,
    final,
    head,
    models="Llama 1, 2, 3, TinyLlama, SmolLM2",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    config=LLAMA_CONFIG,
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    nulls=names("is_causal"),
    biases={"attention_bias": "attn_qkv", "mlp_bias": "mlp_gate_up"},
    architecture="llama",
    metadata=LLAMA_METADATA,
    interleaved=True,
)
