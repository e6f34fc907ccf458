"""Gemma 3 (arXiv 2503.19786), the text model: Gemma 2 without caps, with norms on every head of the
queries and the keys, and two rotary embeddings: windowed layers turn faster than full ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...display import quoted
from ...errors import FormatError
from ...ops.recorder import Recorder
from ...ops.values import Value
from ..checkpoint_keys import activation_of
from ..config import ModelConfig
from ..rotary import Rope
from . import gemma2
from .family import Fold, Settings
from .gemma2 import FAMILY as GEMMA2
from .mistral import windows
from .qwen3 import attention


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    return gemma2.normed_around(m, c, x, i, attention)


def features(settings: Settings) -> dict[str, Any]:
    every = settings.get("_sliding_window_pattern", settings["sliding_window_pattern"])
    if type(every) is not int or every < 1:
        raise FormatError(f"config.json: sliding_window_pattern = {quoted(every)}")
    n_layers = settings["num_hidden_layers"]
    return {
        **activation_of(settings, "gelu_tanh"),
        **windows(settings, [(i + 1) % every == 0 for i in range(n_layers)], always=True),
        **gemma2.caps(settings),
    }


def windowed_rope(settings: Settings, rope: Rope) -> Rope:
    return Rope(settings["rope_local_base_freq"])


def implied(settings: Settings) -> dict[str, Any]:
    return gemma2.score_divisor(settings, layers_of_27b=62)


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """As Gemma 2's; queries are scaled in their norm, which would not see it before. What the norms
    of heads read is divided for their ``eps``, as all that a norm reads."""
    found = gemma2.fold(settings, config)
    factors = dict(found.factors)
    of_rows = factors["attn_qkv"] = np.ones(config.qkv_size)
    of_rows[: config.q_size + config.kv_size] = config.hidden_size**-0.5
    factors["q_norm"] = gemma2.score_scale(settings, config)
    return replace(found, factors=factors)


FAMILY = replace(
    GEMMA2,
    layer=layer,
    models="Gemma 3 270M to 27B, text alone",
    classes=("Gemma3ForCausalLM",),
    config=GEMMA2.config.but(
        honoured="_sliding_window_pattern rope_local_base_freq sliding_window_pattern"
    ),
    defaults={
        **GEMMA2.defaults,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "rope_local_base_freq": 1e4,
        "rope_theta": 1e6,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
    },
    features=features,
    windowed_rope=windowed_rope,
    fold=fold,
    implied=implied,
    architecture="gemma3",
    metadata=GEMMA2.metadata.but(fields={"rope.freq_base_swa": "rope_local_base_freq"}),
)
