"""Hyper-parameters out of GGUF metadata, under the names of a Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...display import quoted
from ...errors import FormatError, UnsupportedModelError
from ...model.families import FAMILIES, Family
from ...model.keys import Keys, Refusal, names, only
from .source import Float32

# Keys of every architecture. Those of the tokenizer are read by gguf_tokenizer, those of a split
# model by gguf_file.
_GENERAL = Keys(
    honoured=names("general.architecture general.alignment"),
    refused={"general.type": Refusal("is no model by itself", only("model"))},
    harmless=names("general. quantize. split. tokenizer."),
)
_LONGROPE = ("rope_factors_short.weight", "rope_factors_long.weight")
# Tensors that belong to the metadata.
ROPE_TABLES = ("rope_freqs.weight", *_LONGROPE)
# That of Llama 3 comes first: several may give the same divisors.
_ORIGINAL_CONTEXTS = (8192, *(1 << i for i in range(5, 20) if i != 13))
# A number, or a list with one for each layer.
_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
_REQUIRED = (
    "attention.head_count",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
)


# Of one norm or the other.
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def families_of(architecture: object) -> list[tuple[str, Family]]:
    """``(model_type, family)`` of those that a GGUF file calls so, at least one.

    Raises ``UnsupportedModelError`` where there is none.
    """
    found = [item for item in FAMILIES.items() if item[1].architecture == architecture]
    if not found:
        known = ", ".join(
            family.architecture for family in FAMILIES.values() if family.architecture
        )
        raise UnsupportedModelError(
            f"architecture {quoted(architecture)} is not supported; this version runs {known}"
        )
    return found


def config_of(
    name: str,
    metadata: Mapping[str, Any],
    *,
    vocab_size: int | None,
    tied: bool,
    tables: Mapping[str, Float32],
) -> tuple[dict[str, Any], list[str]]:
    """``(config, unknown keys)`` of the GGUF file ``name``.

    The metadata leave three things to the tensors: the rows of the embedding, whether there is a
    head, and what the rotary frequencies are divided by: those of ``ROPE_TABLES`` that the file
    has, float32 ``[rotary channels / 2]``. Raises ``UnsupportedModelError`` naming the key that
    asks for something else, ``FormatError`` for one that is missing or impossible.
    """
    architecture = metadata.get("general.architecture", "?")
    mixed = bool(metadata.get(f"{architecture}.expert_count"))
    found = families_of(architecture)
    # Mixtral calls itself llama: where experts are counted, whoever knows what that means.
    found.sort(key=lambda item: ("expert_count" in item[1].metadata.fields) is not mixed)
    model_type, family = found[0]
    prefix = f"{architecture}."
    rest = {key: value for key, value in metadata.items() if not key.startswith(prefix)}
    own = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    for key in _PER_LAYER:
        if isinstance(own.get(key), list):
            own[key] = _one_number(prefix + key, own[key])
    for key in (*_REQUIRED, *(key for key in _EPSILONS if key in family.metadata.fields)):
        if key not in own:
            raise FormatError(f"{name}: the GGUF metadata do not say {prefix}{key}")
    own.setdefault("attention.key_length", _head_dim(name, own))
    own.setdefault("attention.head_count_kv", own["attention.head_count"])
    unknown = _GENERAL.check(rest) + family.metadata.check(own, prefix)
    fields = family.metadata.fields
    config = {fields[key]: value for key, value in own.items() if key in fields}
    implied = family.implied(config)
    config |= implied
    rope = _rope_scaling(own, tables)
    if rope is not None:
        rope |= implied.get("rope_scaling", {})
    config |= {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "rope_scaling": rope or {"rope_type": "default"},
    }
    if config.get("sliding_window") == 0:  # none, in GGUF
        config["sliding_window"] = None
    pattern = own.get("attention.sliding_window_pattern")
    if pattern is not None and "attention.sliding_window_pattern" in family.metadata.honoured:
        config["layer_types"] = _layer_types(pattern, own["block_count"])
    head_dim = own["attention.key_length"]
    turning = own.get("rope.dimension_count", head_dim)
    if turning != head_dim and "rope.dimension_count" in family.metadata.honoured:
        if type(turning) is not int or type(head_dim) is not int or head_dim < 1:
            raise FormatError(f"{name}: {prefix}rope.dimension_count = {quoted(turning)}")
        # A share of a head's channels there; the half lets no rounding take one away.
        config["partial_rotary_factor"] = (turning + 0.5) / head_dim
    return config, unknown


def _layer_types(pattern: Any, n_layers: Any) -> list[str]:
    """Which layers have a window: a list that says so of each, or how often one has none."""
    if type(pattern) is int and pattern > 0 and type(n_layers) is int and n_layers <= 1 << 16:
        pattern = [(i + 1) % pattern != 0 for i in range(n_layers)]
    if not isinstance(pattern, list):
        raise FormatError(f"attention.sliding_window_pattern = {quoted(pattern)}")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def _one_number(key: str, values: list[Any]) -> Any:
    if not values or any(value != values[0] for value in values):
        raise UnsupportedModelError(
            f"this model needs layers of different shapes ({key} = {quoted(values)}), "
            "which is not supported"
        )
    return values[0]


def _head_dim(name: str, own: Mapping[str, Any]) -> int:
    hidden_size, n_heads = own["embedding_length"], own["attention.head_count"]
    if type(hidden_size) is not int or type(n_heads) is not int or n_heads < 1:
        raise FormatError(f"{name}: the GGUF metadata hold no plausible sizes of heads")
    return hidden_size // n_heads


def _rope_scaling(own: Mapping[str, Any], tables: Mapping[str, Float32]) -> dict[str, Any] | None:
    """As llama.cpp has it: linear where no type is said, and 0 is no factor."""
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0)) or 1.0
    kind = own.get("rope.scaling.type", "linear")
    if kind == "yarn":
        return _yarn(own, factor)
    if tables.keys() & set(_LONGROPE):
        return _longrope(own, factor, tables)
    # Outside of yarn both would count all the same.
    for key, neutral in (("attn_factor", (1.0,)), ("yarn_ext_factor", (0.0, -1.0))):
        if (value := own.get(f"rope.scaling.{key}", neutral[0])) not in neutral:
            raise UnsupportedModelError(
                f"this model needs scaled attention scores (rope.scaling.{key} = {quoted(value)}), "
                "which is not supported"
            )
    if kind not in ("linear", "none"):
        raise UnsupportedModelError(f"rope scaling {quoted(kind)} is not supported")
    scaled, divisors = kind == "linear" and factor != 1.0, tables.get("rope_freqs.weight")
    if divisors is None:
        return {"rope_type": "linear", "factor": factor} if scaled else None
    if scaled:
        raise UnsupportedModelError("rope_freqs.weight beside rope.scaling.factor is not supported")
    return llama3_scaling(divisors, own["attention.key_length"], own.get("rope.freq_base", 10000.0))


def _yarn(own: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """As llama.cpp computes it: the whole of yarn; a share, ``yarn_ext_factor``, is refused."""
    extension = own.get("rope.scaling.yarn_ext_factor", -1.0)
    if extension not in (-1.0, 1.0):
        raise UnsupportedModelError(
            f"rope.scaling.yarn_ext_factor = {quoted(extension)} is not supported"
        )
    if own.get("rope.scaling.original_context_length") is None:
        raise FormatError("rope.scaling.original_context_length is missing beside yarn")
    grown = 0.1 * math.log(max(_number(own, "rope.scaling.factor", factor), 1.0))
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": own["rope.scaling.original_context_length"],
        "beta_fast": own.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": own.get("rope.scaling.yarn_beta_slow", 1.0),
        "attention_factor": _number(own, "rope.scaling.attn_factor", 1.0)
        * (grown + 1)
        / (grown * _number(own, "rope.scaling.yarn_log_multiplier", 0.0) + 1),
    }
    if beta := own.get("attention.temperature_scale"):
        found["llama_4_scaling_beta"] = beta
    return found


def _number(own: Mapping[str, Any], key: str, default: float) -> float:
    value = own.get(key, default)
    if type(value) not in (int, float) or not 0 <= value <= 1e6:
        raise FormatError(f"{key} = {quoted(value)}, expected a number of 0 to 1e6")
    return float(value)


def _longrope(own: Mapping[str, Any], factor: float, tables: Mapping[str, Float32]) -> Any:
    """As llama.cpp has it: two tables of divisors, and a factor of what turns."""
    for name in _LONGROPE:
        if name not in tables:
            raise FormatError(f"tensor {name} is missing")
    if factor != 1.0 or "rope_freqs.weight" in tables:
        raise UnsupportedModelError("longrope beside another rotary scaling is not supported")
    short, long = (tables[name].ravel().tolist() for name in _LONGROPE)
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": own.get(
            "rope.scaling.original_context_length", own["context_length"]
        ),
        "attention_factor": own.get("rope.scaling.attn_factor", 1.0),
    }


def llama3_scaling(divisors: Float32, head_dim: Any, theta: Any) -> dict[str, Any]:
    """Llama 3.1's scaling from the divisors of the frequencies, which is all that GGUF keeps.

    The largest divisor is ``factor``; the two frequency factors are those of every published model,
    and the original context is the power of two that gives these divisors. Raises
    ``UnsupportedModelError`` when none does.
    """
    n = divisors.size
    if divisors.ndim != 1 or head_dim != 2 * n or type(theta) not in (int, float):
        raise FormatError(f"rope_freqs.weight holds {n} divisors for heads of {quoted(head_dim)}")
    factor, low, high = float(divisors.max()), 1.0, 4.0
    for original in _ORIGINAL_CONTEXTS:
        with np.errstate(all="ignore"):  # whatever a file says
            wavelength = 2 * math.pi * np.float64(theta) ** (np.arange(n, dtype=np.float64) / n)
            blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
            expected = 1.0 / ((1 - blend) / factor + blend) if factor else blend
            same = np.allclose(divisors, expected, rtol=1e-4)
        if same:
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedModelError("rope_freqs.weight holds a rotary scaling other than llama3's")
