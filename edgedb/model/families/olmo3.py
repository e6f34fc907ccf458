"""OLMo 3: OLMo 2 with a window in three of four layers, whose angles nothing scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..keys import names
from ..rotary import Rope
from .family import Settings
from .mistral import LAYER_TYPES, WINDOW, windows
from .olmo2 import FAMILY as OLMO2


def features(settings: Settings) -> dict[str, Any]:
    n_layers = settings["num_hidden_layers"]
    return windows(settings, [(i + 1) % 4 == 0 for i in range(n_layers)], always=True)


def windowed_rope(settings: Settings, rope: Rope) -> Rope:
    return Rope(rope.theta)


FAMILY = replace(
    OLMO2,
    models="OLMo 3 7B, 32B",
    classes=("Olmo3ForCausalLM",),
    config=OLMO2.config.but(refused={**WINDOW, **LAYER_TYPES}),
    defaults={**OLMO2.defaults, "rope_theta": 5e5, "sliding_window": 4096},
    nulls=names("is_causal sliding_window"),
    features=features,
    windowed_rope=windowed_rope,
    architecture=None,  # OLMo 2's, where nothing says that windowed layers are not scaled
)
