"""From a checkpoint's config.json to a ``ModelConfig``, by what its family says of the keys.

The same dictionary, built from GGUF metadata by ``tools``, takes the same road.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..display import quoted
from ..errors import FormatError, UnsupportedModelError
from .checkpoint_keys import ROPE_KEYS
from .config import ModelConfig, RopeScaling
from .families import Family, Fold, family_of


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

    rope, theta, unknown_of_rope = _read_rope(settings)
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
    config = ModelConfig(model_type=model_type, rope_theta=theta, rope_scaling=rope, **fields)
    # Checked before: a family compares its features with the sizes.
    config = replace(config.checked(), **family.features(settings))
    fold = family.fold(settings, config.checked())
    return replace(fold, config=fold.config.checked()), unknown + unknown_of_rope


def _unknown_classes(settings: Mapping[str, Any], family: Family) -> list[str]:
    """A class of its own may compute something of its own."""
    classes = settings.get("architectures", [])
    classes = classes if isinstance(classes, list) else [classes]
    return [f"architectures: {name}" for name in classes if name not in family.classes]


def _read_rope(settings: Mapping[str, Any]) -> tuple[RopeScaling, Any, list[str]]:
    """``(scaling, theta, unknown names)``.

    transformers 5 keeps theta and scaling together in ``rope_parameters``; ``rope_scaling``, as
    transformers 4 called it, stands for all of that where it is present. A theta inside counts.
    """
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    raw = settings.get(name) or {}
    if not isinstance(raw, Mapping):
        raise FormatError(f"config.json: {name} must be a JSON object")
    rope = {key: value for key, value in raw.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise UnsupportedModelError(
            f"rope scaling {quoted(kind)} is not supported; "
            f"this version runs {', '.join(ROPE_KEYS)}"
        )
    for key, value in rope.items():
        if isinstance(value, Mapping):
            raise UnsupportedModelError(
                f"this model needs a rotary embedding for each kind of layer ({name}.{key}), "
                "which is not supported"
            )
    unknown = ROPE_KEYS[kind].check(rope, f"{name}.")
    theta = rope.get("rope_theta", settings["rope_theta"])
    if kind == "default":
        return RopeScaling(), theta, unknown
    values: dict[str, Any] = {"factor": rope.get("factor")}
    if kind == "yarn":
        values |= _yarn(settings, rope)
    if kind == "llama3":
        values |= {
            "low_freq_factor": rope.get("low_freq_factor"),
            "high_freq_factor": rope.get("high_freq_factor"),
            "original_max_position_embeddings": _original_context(settings, rope),
        }
    for key, value in values.items():
        if value is None:
            raise FormatError(f"config.json: {name} of type {kind} lacks {key}")
    return RopeScaling(kind, **values), theta, unknown


def _yarn(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of yarn; the factor of cosines and sines as transformers finds it."""
    values = {
        "beta_fast": rope.get("beta_fast", 32.0),
        "beta_slow": rope.get("beta_slow", 1.0),
        "original_max_position_embeddings": _original_context(settings, rope),
    }
    if "attention_factor" in rope:
        return {**values, "attention_factor": rope["attention_factor"]}
    factor: Any = rope.get("factor")
    if not _is_number(factor):
        return values  # refused where values are checked
    both = [rope.get(key, 0) for key in ("mscale", "mscale_all_dim")]
    if not all(map(_is_number, both)):
        raise FormatError("config.json: mscale and mscale_all_dim must be numbers of 0 to 1e6")
    of, over = (_attention_factor(factor, mscale) for mscale in (both if all(both) else (1.0, 0)))
    return {**values, "attention_factor": of / over}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= 1e6


def _attention_factor(factor: float, mscale: float) -> float:
    """YaRN, arXiv 2309.00071, equation 22: scores grow with the logarithm of the context."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _original_context(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    """Positions that llama3's and yarn's scaling start from; transformers looks outside first."""
    key = "original_max_position_embeddings"
    return settings.get(key, rope.get(key, settings["max_position_embeddings"]))


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
