"""Mistral 7B (arXiv 2310.06825), Zephyr: Llama whose queries see the last keys alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..keys import at_least_one, either, names, needs, only
from .family import Settings
from .llama import FAMILY as LLAMA

# 0 would be a window without any key.
WINDOW = {"sliding_window": needs("queries that see no key", either(only(None), at_least_one))}


def window_of(settings: Settings) -> int | None:
    """Keys that a query sees; None where that is as good as all."""
    window: int | None = settings.get("sliding_window")
    if window is None or window >= settings["max_position_embeddings"]:
        return None
    return window


def features(settings: Settings) -> dict[str, Any]:
    return {"sliding_window": window_of(settings)}


FAMILY = replace(
    LLAMA,
    models="Mistral 7B, Zephyr",
    classes=("MistralForCausalLM",),
    config=LLAMA.config.but(refused=WINDOW),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    # Null is no window, and as many key/value heads as heads.
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    architecture=None,  # Llama's, whose window llama.cpp does not know
)
