"""Falcon 7B, 40B, 180B (arXiv 2311.16867): attention and feed-forward in parallel, behind one norm
or each behind its own; queries that share keys, and the exact GELU. Falcon-RW (arXiv 2306.01116):
one behind the other, scores that lose by distance, biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import OLDER_CONFIG, activation_of
from ..config import ModelConfig
from ..keys import needs, only
from .bloom import slopes
from .family import Settings
from .gpt2 import derived as wide
from .llama import attention as turning
from .llama import first
from .opt import FAMILY as OPT
from .opt import attention, mlp


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    h = m.layer_norm(x, "attn_norm")
    if c.alibi:
        y = x + attention(m, c, h, slopes=_slopes(c), bias=c.attention_bias)
    else:
        y = x + turning(m, c, h, i)
    if not c.shared_norm:
        h = m.layer_norm(x if c.parallel else y, "mlp_norm")
    return y + mlp(m, c, h, "gelu", bias=c.mlp_bias)


def _slopes(c: ModelConfig) -> tuple[float, ...]:
    """BLOOM's in bfloat16, and scaled as scores are. (Transformers has what a key's score loses in
    bfloat16, too, which from position 256 on is not what the slopes say.)"""
    scale = float(np.float32(1) / np.sqrt(np.float32(c.head_dim)))
    return tuple(scale * _bfloat16(slope) for slope in slopes(c.n_heads))


def _bfloat16(value: float) -> float:
    """The nearest one, of two the even one."""
    bits = int(np.float32(value).view(np.uint32))
    rounded = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return float(np.uint32(rounded).view(np.float32))


def derived(settings: Settings) -> dict[str, Any]:
    """Keys and values: as many as are said of the new architecture, else one for all, or for each.
    Of the new architecture two norms, where nothing is said."""
    n_heads, new = settings.get("num_attention_heads"), settings["new_decoder_architecture"]
    heads = settings.get("num_kv_heads", n_heads) if new else n_heads
    if not new and settings["multi_query"]:
        heads = 1
    return {**wide(settings), "n_kv_heads": heads, "num_ln_in_parallel_attn": 2 if new else 1}


def features(settings: Settings) -> dict[str, Any]:
    parallel = settings["new_decoder_architecture"] or settings["parallel_attn"]
    shared = parallel and settings["num_ln_in_parallel_attn"] != 2
    alibi = settings.get("alibi", False)
    found = {"parallel": parallel, "shared_norm": shared, "alibi": alibi}
    return {**found, **activation_of(settings, "gelu")}


_SWITCH = needs("a switch of another kind", only(True, False))

FAMILY = replace(
    OPT,
    first=first,
    layer=layer,
    models="Falcon 7B, 40B, 180B, Falcon-RW",
    classes=("FalconForCausalLM",),
    config=OLDER_CONFIG.but(
        fields={"layer_norm_epsilon": "norm_eps", "n_kv_heads": "n_kv_heads"},
        honoured="num_kv_heads num_ln_in_parallel_attn",
        refused={
            "alibi": _SWITCH,
            "multi_query": _SWITCH,
            "new_decoder_architecture": _SWITCH,
            "parallel_attn": _SWITCH,
        },
        harmless="apply_residual_connection_post_layernorm bias",  # of biases, tensors decide
    ),
    defaults={
        "hidden_act": "gelu",
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    aliases={
        "activation": "hidden_act",
        "ffn_hidden_size": "intermediate_size",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
        "n_layer": "num_hidden_layers",
    },
    derived=derived,
    features=features,
    biases={"attention_bias": "attn_qkv", "mlp_bias": "mlp_up"},
)
