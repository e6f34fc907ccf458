"""SmolLM3 3B: Llama without a rotary embedding in every fourth layer (arXiv 2501.18795)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...display import quoted
from ...errors import FormatError
from ..keys import names
from .family import Settings
from .llama import FAMILY as LLAMA
from .mistral import LAYER_TYPES, WINDOW, windows


def turning(settings: Settings) -> list[bool]:
    """For each layer whether its heads turn."""
    n_layers, every = settings["num_hidden_layers"], settings["no_rope_layer_interval"]
    given = settings.get("no_rope_layers")
    if given is None:
        if type(every) is not int or every < 1:
            raise FormatError(f"config.json: no_rope_layer_interval = {quoted(every)}")
        return [(i + 1) % every != 0 for i in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or set(given) - {0, 1}:
        raise FormatError(
            f"config.json: no_rope_layers = {quoted(given)}, expected 0 or 1 for each layer"
        )
    return [bool(turns) for turns in given]  # 1 where they do, whatever its name says


def features(settings: Settings) -> dict[str, Any]:
    turns = turning(settings)
    window = windows(settings, turns) if settings["use_sliding_window"] else {}
    return {"unrotated_layers": tuple(i for i, one in enumerate(turns) if not one), **window}


FAMILY = replace(
    LLAMA,
    models="SmolLM3 3B",
    classes=("SmolLM3ForCausalLM",),
    config=LLAMA.config.but(
        honoured="no_rope_layer_interval no_rope_layers use_sliding_window",
        refused={**WINDOW, **LAYER_TYPES},
    ),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    architecture="smollm3",
)
