"""OPT (arXiv 2205.01068): norms that take the mean away, learned positions, no gate, biases."""

from __future__ import annotations

from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, activation_of
from ..config import ModelConfig
from ..keys import names, needs, only
from .family import Family, Settings
from .llama import head


def first(m: Recorder, c: ModelConfig) -> Value:
    x = m.embed("embedding", c.vocab_size, c.hidden_size)
    return x + m.position("positions", c.max_position_embeddings, c.hidden_size)


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.layer_norm(x, "attn_norm"))
    return x + mlp(m, c, m.layer_norm(x, "mlp_norm"), "relu")


def attention(
    m: Recorder, c: ModelConfig, x: Value, *, slopes: tuple[float, ...] | None = None
) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=True)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    attended = m.attention(q, k, v, slopes=slopes)
    return m.linear(attended, "attn_out", c.hidden_size, bias=True)


def mlp(m: Recorder, c: ModelConfig, x: Value, usual: str, *, bias: bool = True) -> Value:
    """usual: the activation of a model that says none."""
    up = m.linear(x, "mlp_up", c.intermediate_size, bias=bias)
    return m.linear(m.activation(c.activation or usual, up), "mlp_down", c.hidden_size, bias=bias)


def final(m: Recorder, c: ModelConfig, x: Value) -> Value:
    return m.layer_norm(x, "final_norm")


def features(settings: Settings) -> dict[str, Any]:
    return activation_of(settings, "relu")


_NORM_BEHIND = needs("norms behind attention and feed-forward", only(True))

FAMILY = Family(
    first,
    layer,
    final,
    head,
    models="OPT 125M, 1.3B to 66B",
    classes=("OPTForCausalLM",),
    config=OLDER_CONFIG.but(
        refused={
            "_remove_final_layer_norm": needs("no norm before the head", only(False)),
            "do_layer_norm_before": _NORM_BEHIND,
            "enable_bias": needs("projections without biases", only(True)),
            "layer_norm_elementwise_affine": needs("norms without weights", only(True)),
            "word_embed_proj_dim": needs(
                "an embedding of another width", lambda value, all_: value == all_["hidden_size"]
            ),
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
)
