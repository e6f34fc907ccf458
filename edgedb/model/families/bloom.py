"""BLOOM, BLOOMZ (arXiv 2211.05100): GPT-2's layers, whose scores lose by distance (ALiBi, arXiv
2108.12409) where others have positions, and a norm of the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, OLDER_METADATA
from ..config import ModelConfig
from ..keys import needs, only
from .gpt2 import derived
from .opt import FAMILY as OPT
from .opt import attention, mlp


def first(m: Recorder, c: ModelConfig) -> Value:
    return m.layer_norm(m.embed("embedding", c.vocab_size, c.hidden_size), "embedding_norm")


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.layer_norm(x, "attn_norm"), slopes=slopes(c.n_heads))
    return x + mlp(m, c, m.layer_norm(x, "mlp_norm"), "gelu_tanh")


def slopes(n_heads: int) -> tuple[float, ...]:
    """A geometric series down to 2^-8; between its members those of one twice as long, where the
    number of heads is no power of 2."""
    power = 1 << (n_heads.bit_length() - 1)
    between = range(1, 2 * (n_heads - power), 2)
    return (
        *(2.0 ** (-8 * (i + 1) / power) for i in range(power)),
        *(2.0 ** (-4 * i / power) for i in between),
    )


def features(settings: Any) -> dict[str, Any]:
    return {}


FAMILY = replace(
    OPT,
    first=first,
    layer=layer,
    models="BLOOM, BLOOMZ 560M to 176B",
    classes=("BloomForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_epsilon": "norm_eps"},
        refused={
            "apply_residual_connection_post_layernorm": needs(
                "a residual stream of what norms give", only(False)
            ),
        },
        harmless="attention_softmax_in_fp32 bias_dropout_fusion hidden_act masked_softmax_fusion "
        "offset_alibi skip_bias_add skip_bias_add_qkv slow_but_exact unk_token_id",
    ),
    defaults={
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,  # that it was trained with; nothing ends there
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    aliases={
        "n_embed": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "seq_length": "max_position_embeddings",
    },
    derived=derived,
    features=features,
    architecture="bloom",
    metadata=OLDER_METADATA.but(
        refused={"attention.max_alibi_bias": needs("other slopes of ALiBi", only(0.0, 8.0))}
    ),
)
