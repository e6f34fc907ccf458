"""OPT (arXiv 2205.01068): norms that take the mean away, learned positions, no gate, biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, activation_of
from ..config import ModelConfig
from ..keys import at_least_one, names, needs, only
from .family import Family, Fold, Settings
from .llama import head


def first(m: Recorder, c: ModelConfig) -> Value:
    x = m.embed("embedding", c.vocab_size, c.hidden_size)
    return x + m.position("positions", c.max_position_embeddings, c.hidden_size)


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    if c.norms_behind:
        x = m.layer_norm(x + attention(m, c, x), "attn_norm")
        return m.layer_norm(x + mlp(m, c, x, "relu"), "mlp_norm")
    x = x + attention(m, c, m.layer_norm(x, "attn_norm"))
    return x + mlp(m, c, m.layer_norm(x, "mlp_norm"), "relu")


def attention(
    m: Recorder,
    c: ModelConfig,
    x: Value,
    *,
    slopes: tuple[float, ...] | None = None,
    bias: bool = True,
) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=bias)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    attended = m.attention(q, k, v, slopes=slopes)
    return m.linear(attended, "attn_out", c.hidden_size, bias=bias)


def mlp(m: Recorder, c: ModelConfig, x: Value, usual: str, *, bias: bool = True) -> Value:
    """usual: the activation of a model that says none."""
    up = m.linear(x, "mlp_up", c.intermediate_size, bias=bias)
    return m.linear(m.activation(c.activation or usual, up), "mlp_down", c.hidden_size, bias=bias)


def final(m: Recorder, c: ModelConfig, x: Value) -> Value:
    return x if c.norms_behind else m.layer_norm(x, "final_norm")


def features(settings: Settings) -> dict[str, Any]:
    behind = not settings.get("do_layer_norm_before", True)
    return {"norms_behind": behind, **activation_of(settings, "relu")}


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """An embedding of another width goes through a matrix into the stream, and the stream through
    another one back to it: what reads the embedding and what gives logits are two products."""
    if settings.get("word_embed_proj_dim", config.hidden_size) == config.hidden_size:
        return Fold(config)
    return Fold(replace(config, tie_word_embeddings=False))


FAMILY = Family(
    first,
    layer,
    final,
    head,
    models="OPT 125M to 66B",
    classes=("OPTForCausalLM",),
    config=OLDER_CONFIG.but(
        refused={
            "_remove_final_layer_norm": needs("no norm before the head", only(False)),
            "do_layer_norm_before": needs("a switch of another kind", only(True, False)),
            "enable_bias": needs("projections without biases", only(True)),
            "layer_norm_elementwise_affine": needs("norms without weights", only(True)),
            "word_embed_proj_dim": needs("a width of another kind", at_least_one),
        },
        harmless="dropout init_std layerdrop",
    ),
    defaults={
        "hidden_act": "relu",
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    nulls=names(""),
    aliases={"activation_function": "hidden_act", "ffn_dim": "intermediate_size"},
    features=features,
    fold=fold,
)
