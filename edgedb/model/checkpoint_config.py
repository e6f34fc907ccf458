"""From a checkpoint's config.json to a ``ModelConfig``, by what its family says of the keys.

The same dictionary, built from GGUF metadata by ``tools``, takes the same road.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from .checkpoint_rope import read_rope
from .config import ModelConfig
from .families import Family, Fold, family_of, program_of
from .rotary import RopeScaling


def read_config(
    raw: Mapping[str, Any], has: Callable[[str], bool] = lambda name: False
) -> tuple[Fold, list[str]]:
    """Hyper-parameters of a Hugging Face ``config.json`` (already parsed) and what its weights are
    multiplied with, and the names in it that this version does not know.

    ``has``: whether the checkpoint has a tensor, such as ``layers.0.attn_qkv.bias``. Raises
    ``UnsupportedModelError`` naming the feature that is not supported, ``FormatError`` for a
    missing or impossible value.
    """
    model_type = raw.get("model_type", "?")
    family = family_of(model_type)
    named = {family.aliases.get(key, key): value for key, value in raw.items()}
    given = {key: value for key, value in named.items() if value is not None or key in family.nulls}
    settings = {**family.defaults, **given}
    settings = {**family.derived(settings), **settings}
    unknown = family.config.check(settings) + _unknown_classes(settings, family)

    fields: dict[str, Any] = {
        field: settings.get(key) for key, field in family.config.fields.items()
    }
    if fields.get("head_dim") is None:
        fields["head_dim"] = _divide(settings)
    if fields.get("n_kv_heads") is None:
        fields["n_kv_heads"] = fields["n_heads"]
    for key, field in family.config.fields.items():
        if fields[field] is None:
            raise FormatError(f"config.json: {key} is missing")
    fields |= {name: has(f"layers.0.{matrix}.bias") for name, matrix in family.biases.items()}
    rope, features, unknown_of_rope = read_rope(settings, family, fields["head_dim"])
    config = ModelConfig(
        model_type=model_type, rope_theta=rope.theta, rope_scaling=rope.scaling, **fields
    )
    # A family compares its features with the sizes: those are checked before.
    replace(config, rope_scaling=RopeScaling()).checked()
    config = replace(config, **{**features, **family.features(settings)})
    fold = family.fold(settings, config.checked())
    fold = replace(fold, config=fold.config.checked())
    return replace(fold, orders=_by_halves(fold.config)), unknown + unknown_of_rope


def _unknown_classes(settings: Mapping[str, Any], family: Family) -> list[str]:
    """A class of its own may compute something of its own."""
    classes = settings.get("architectures", [])
    classes = classes if isinstance(classes, list) else [classes]
    return [f"architectures: {name}" for name in classes if name not in family.classes]


def _by_halves(config: ModelConfig) -> dict[str, NDArray[np.intp]]:
    """The order of rows in which channel i of a head turns with ``i + head_dim / 2``.

    Whatever share of them turns: those that do not stand behind those that do, in each half.

    A score does not see in which order q and k have their channels.
    """
    dim, head_dim = config.rotary_dim or config.head_dim, config.head_dim
    if dim == head_dim:
        return {}
    turning, still = np.arange(dim), np.arange(dim, head_dim)
    halves = zip(np.split(turning, 2), np.split(still, 2), strict=True)
    head = np.concatenate([part for half in halves for part in half])
    sizes = (config.q_size, config.kv_size)
    q, k = (np.concatenate([at + head for at in range(0, size, head_dim)]) for size in sizes)
    v = config.q_size + config.kv_size + np.arange(config.kv_size)
    orders = {"attn_qkv": np.concatenate([q, config.q_size + k, v])}
    lengths = program_of(config).kinds[0].vectors
    for name, order in (("q_norm", q), ("k_norm", k)):
        if name in lengths:
            orders[name] = head if lengths[name] == head_dim else order
    return orders


def _divide(settings: Mapping[str, Any]) -> int | None:
    """hidden_size / heads, or None if one of them is missing."""
    hidden_size, n_heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if hidden_size is None or n_heads is None:
        return None
    if type(hidden_size) is not int or type(n_heads) is not int or n_heads <= 0:
        raise FormatError(
            "config.json: hidden_size and num_attention_heads must be positive integers"
        )
    if hidden_size % n_heads:
        raise FormatError(
            f"config.json: hidden_size {hidden_size} is no multiple of {n_heads} heads"
        )
    return hidden_size // n_heads
