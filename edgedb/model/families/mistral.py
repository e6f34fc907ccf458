"""Mistral 7B (arXiv 2310.06825), Zephyr: Llama whose queries see the last keys alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import FormatError
from ..keys import at_least_one, each, either, names, needs, only
from .family import Settings
from .llama import FAMILY as LLAMA

# 0 would be a window without any key.
WINDOW = {"sliding_window": needs("queries that see no key", either(only(None), at_least_one))}
LAYER_TYPES = {
    "layer_types": needs("other layers than attention", each("full_attention", "sliding_attention"))
}


def window_of(settings: Settings) -> int | None:
    """Keys that a query sees; None where that is as good as all."""
    window: int | None = settings.get("sliding_window")
    if window is None or window >= settings["max_position_embeddings"]:
        return None
    return window


def windows(settings: Settings, usual: Sequence[bool], *, always: bool = False) -> dict[str, Any]:
    """The window of the layers that ``layer_types`` says; where it says nothing, of those without
    a ``usual`` full attention. Nothing where that is no layer, or is as good as no window, which
    ``always`` says of those layers nevertheless."""
    kinds = settings.get("layer_types")
    full = usual if kinds is None else [kind != "sliding_attention" for kind in kinds]
    n_layers = settings["num_hidden_layers"]
    if len(full) != n_layers:
        raise FormatError(f"config.json: layer_types has {len(full)} entries for {n_layers} layers")
    window, layers = window_of(settings), tuple(i for i, one in enumerate(full) if not one)
    if not layers or (window is None and not always):
        return {}
    return {"sliding_window": window, "windowed_layers": layers}


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
