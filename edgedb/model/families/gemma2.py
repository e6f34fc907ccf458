"""Gemma 2 (arXiv 2408.00118): Gemma with norms behind attention and feed-forward too, caps of
scores and logits, and a window in every other layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import FormatError
from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import activation_of
from ..config import ModelConfig
from ..keys import names
from . import llama
from .family import Fold, Settings
from .gemma import FAMILY as GEMMA
from .gemma import mlp
from .llama import attention
from .mistral import LAYER_TYPES, WINDOW, windows

Attend = Callable[[Recorder, ModelConfig, Value, int], Value]


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    return normed_around(m, c, x, i, attention)


def normed_around(m: Recorder, c: ModelConfig, x: Value, i: int, attention: Attend) -> Value:
    """A layer with norms before and behind its ``attention`` and its feed-forward."""
    x = x + m.rms_norm(attention(m, c, m.rms_norm(x, "attn_norm"), i), "attn_post_norm")
    return x + m.rms_norm(mlp(m, c, m.rms_norm(x, "mlp_norm")), "mlp_post_norm")


def head(m: Recorder, c: ModelConfig, x: Value) -> Value:
    logits = llama.head(m, c, x)
    return logits if c.logit_cap is None else m.softcap(logits, c.logit_cap)


def features(settings: Settings) -> dict[str, Any]:
    n_layers = settings["num_hidden_layers"]
    return {
        **activation_of(settings, "gelu_tanh"),
        **windows(settings, [i % 2 == 1 for i in range(n_layers)]),
        **caps(settings),
    }


def caps(settings: Settings) -> dict[str, Any]:
    return {
        "score_cap": settings.get("attn_logit_softcapping"),
        "logit_cap": settings.get("final_logit_softcapping"),
    }


def score_scale(settings: Settings, config: ModelConfig) -> float:
    """What queries are multiplied with, so that scores over sqrt(head_dim) are over the root of
    ``query_pre_attn_scalar``."""
    scalar = settings["query_pre_attn_scalar"]
    if type(scalar) not in (int, float) or not 1e-3 <= scalar <= 1e6:
        raise FormatError(
            f"config.json: query_pre_attn_scalar = {scalar!r}, expected a positive number"
        )
    return math.sqrt(config.head_dim / scalar)


def implied(settings: Settings) -> dict[str, Any]:
    return score_divisor(settings, layers_of_27b=46)


def score_divisor(settings: Settings, *, layers_of_27b: int) -> dict[str, Any]:
    """GGUF does not say what scores are divided by: the root of head_dim, but in the 27B."""
    scalar = settings.get("head_dim")
    if settings["num_hidden_layers"] == layers_of_27b:
        scalar = _width_per_head(settings)
    return {"query_pre_attn_scalar": scalar}


def _width_per_head(settings: Settings) -> Any:
    hidden_size, n_heads = settings["hidden_size"], settings["num_attention_heads"]
    sizes = type(hidden_size) is type(n_heads) is int and n_heads > 0
    return hidden_size / n_heads if sizes else None


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """As Gemma's; here norms stand before what is added, and are divided in its place. What they
    read is divided as well, because all norms have one ``eps``."""
    scale = 1 / math.sqrt(config.hidden_size)
    of_queries = np.ones(config.qkv_size)
    of_queries[: config.q_size] = score_scale(settings, config)
    return Fold(
        replace(config, norm_eps=config.norm_eps / config.hidden_size),
        {
            "attn_qkv": of_queries,
            "attn_out": scale,
            "attn_post_norm": scale,
            "mlp_down": scale,
            "mlp_post_norm": scale,
        },
    )


FAMILY = replace(
    GEMMA,
    layer=layer,
    head=head,
    models="Gemma 2 2B, 9B and 27B",
    classes=("Gemma2ForCausalLM",),
    config=GEMMA.config.but(
        honoured="attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar",
        refused={**WINDOW, **LAYER_TYPES},
    ),
    defaults={
        **GEMMA.defaults,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    nulls=names("is_causal attn_logit_softcapping final_logit_softcapping sliding_window"),
    features=features,
    fold=fold,
    implied=implied,
    architecture="gemma2",
    metadata=GEMMA.metadata.but(
        fields={
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        honoured="attention.sliding_window_pattern",
    ),
)
