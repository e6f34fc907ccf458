"""From a checkpoint's settings to its rotary embedding: theta, scaling, what differs by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..display import quoted
from ..errors import FormatError, UnsupportedModelError
from ..ops.values import Growth
from .checkpoint_keys import ROPE_KEYS
from .families import Family
from .rotary import Rope, RopeScaling

_KINDS = ("full_attention", "sliding_attention")
# How settings call the share of a head's channels that turns.
_SHARES = ("partial_rotary_factor", "rotary_pct")


def read_rope(
    settings: Mapping[str, Any], family: Family, head_dim: Any
) -> tuple[Rope, dict[str, Any], list[str]]:
    """``(rope, features, unknown names)``; rope is that of layers without a window.

    transformers 5 keeps theta and scaling together in ``rope_parameters``; ``rope_scaling``, as
    transformers 4 called it, stands for all of that where it is present. A theta inside counts.
    Both may hold an object for each kind of layer instead.
    """
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    raw = settings.get(name) or {}
    if not isinstance(raw, Mapping):
        raise FormatError(f"config.json: {name} must be a JSON object")
    by_kind = [key for key, value in raw.items() if isinstance(value, Mapping)]
    for key in by_kind:
        if family.windowed_rope is None or set(raw) - set(_KINDS):
            raise UnsupportedModelError(
                f"this model needs a rotary embedding for each kind of layer ({name}.{key}), "
                "which is not supported"
            )
    windowed: Rope | None = None
    if by_kind:
        full = raw.get("full_attention") or {}
        rope, unknown = _read(settings, family, f"{name}.full_attention", full)
        windowed = rope
        if "sliding_attention" in raw:
            own = raw["sliding_attention"] or {}
            windowed, more = _read(settings, family, f"{name}.sliding_attention", own)
            unknown = unknown + more
    else:
        full = {key: value for key, value in raw.items() if value is not None}
        rope, unknown = _read(settings, family, name, full)
        if family.windowed_rope is not None:
            windowed = family.windowed_rope(settings, rope)
    features: dict[str, Any] = {"query_growth": _growth(settings, full)}
    features["windowed_rope"] = None if windowed == rope else windowed
    features["rotary_dim"] = _rotary_dim(settings, full, head_dim)
    return rope, {key: value for key, value in features.items() if value is not None}, unknown


def _read(
    settings: Mapping[str, Any], family: Family, name: str, raw: Mapping[str, Any]
) -> tuple[Rope, list[str]]:
    rope = {key: value for key, value in raw.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise UnsupportedModelError(
            f"rope scaling {quoted(kind)} is not supported; "
            f"this version runs {', '.join(ROPE_KEYS)}"
        )
    unknown = ROPE_KEYS[kind].but(honoured=family.rope).check(rope, f"{name}.")
    theta = rope.get("rope_theta", settings["rope_theta"])
    if kind == "default":
        return Rope(theta), unknown
    values: dict[str, Any] = {"factor": rope.get("factor")}
    if kind == "yarn":
        values |= _yarn(settings, rope)
    elif kind == "llama3":
        values |= {
            "low_freq_factor": rope.get("low_freq_factor"),
            "high_freq_factor": rope.get("high_freq_factor"),
            "original_max_position_embeddings": original_context(settings, rope),
        }
    elif kind in ("longrope", "su"):
        kind, values = "longrope", _longrope(settings, rope)
    for key, value in values.items():
        if value is None:
            raise FormatError(f"config.json: {name} of type {kind} lacks {key}")
    return Rope(theta, RopeScaling(kind, **values)), unknown


def _yarn(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of yarn; the factor of cosines and sines as transformers finds it."""
    values = {
        "beta_fast": rope.get("beta_fast", 32.0),
        "beta_slow": rope.get("beta_slow", 1.0),
        "original_max_position_embeddings": original_context(settings, rope),
        "truncate": rope.get("truncate", True),
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


def _longrope(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of longrope; where nothing says by how much the context grew, it did so from the
    original one to ``max_position_embeddings``."""
    original = original_context(settings, rope)
    values: dict[str, Any] = {
        "short_factors": _factors(rope, "short_factor"),
        "long_factors": _factors(rope, "long_factor"),
        "original_max_position_embeddings": original,
    }
    factor: Any = rope.get("factor")
    longest = settings["max_position_embeddings"]
    if not all(type(n) is int and n > 0 for n in (original, longest)):
        raise FormatError("config.json: the contexts of longrope must be positive integers")
    factor = longest / original if factor is None else factor
    if not _is_number(factor):
        raise FormatError("config.json: factor of longrope must be a number of 0 to 1e6")
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return {**values, "attention_factor": rope.get("attention_factor", usual)}


def _factors(rope: Mapping[str, Any], key: str) -> tuple[Any, ...] | None:
    found = rope.get(key)
    if found is not None and not isinstance(found, (list, tuple)):
        raise FormatError(f"config.json: {key} must be a list")
    return None if found is None else tuple(found)


def _growth(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> Growth | None:
    """Only where the family honours it is it there."""
    beta: Any = rope.get("llama_4_scaling_beta") or 0
    if not _is_number(beta):
        raise FormatError("config.json: llama_4_scaling_beta must be a number of 0 to 1e6")
    every = original_context(settings, rope)
    return Growth(float(beta), every) if beta else None


def _rotary_dim(settings: Mapping[str, Any], rope: Mapping[str, Any], head_dim: Any) -> int | None:
    """Channels that turn, as transformers counts them; None: all."""
    shares = [of[key] for of in (rope, settings) for key in _SHARES if of.get(key) is not None]
    share: Any = shares[0] if shares else 1.0
    if not _is_number(share):
        raise FormatError(f"config.json: {quoted(share)} is no share of a head's channels")
    if type(head_dim) is not int:
        return None  # refused where sizes are checked
    dim = int(head_dim * share)
    return None if dim == head_dim else dim


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= 1e6


def _attention_factor(factor: float, mscale: float) -> float:
    """YaRN, arXiv 2309.00071, equation 22: scores grow with the logarithm of the context."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def original_context(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    """Positions that scaling starts from; transformers looks outside first."""
    key = "original_max_position_embeddings"
    return settings.get(key, rope.get(key, settings["max_position_embeddings"]))
