"""What a model is: its hyper-parameters, and the refusal of what the forward pass cannot run.

``ModelConfig.from_hf`` is the only reader of a checkpoint's ``config.json``; the same dictionary,
built from GGUF metadata by ``tools``, takes the same road. A ``.dbb`` carries ``to_dict()``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FormatError, UnsupportedModelError

# model_type of the checkpoint -> why it is the same forward pass. A family whose checkpoint differs
# only in names or defaults is one row here and one name map in tools/sources.
FAMILIES = {
    "llama": "Llama 1, 2, 3, TinyLlama, SmolLM2",
    "mistral": "Mistral without sliding window",
}

ROPE_TYPES = ("default", "linear", "llama3")

# Bounds of plausibility: far above every published Llama, far below what could exhaust memory
# or overflow a 32-bit index in the kernels.
_BOUNDS = {
    "vocab_size": (1, 1 << 21),
    "hidden_size": (1, 1 << 17),
    "intermediate_size": (1, 1 << 19),
    "n_layers": (1, 1024),
    "n_heads": (1, 1024),
    "n_kv_heads": (1, 1024),
    "head_dim": (2, 1024),
    "max_position_embeddings": (1, 1 << 24),
}


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of the rotary embedding; ``type`` is one of ``ROPE_TYPES``.

    ``linear`` divides every frequency by ``factor``. ``llama3`` (Llama 3.1) divides low
    frequencies by ``factor``, keeps high ones, and blends in between.
    """

    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of a Llama-family decoder, in the names the papers use."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False

    @property
    def q_size(self) -> int:
        """Rows of the query projection: ``n_heads * head_dim``."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection: ``n_kv_heads * head_dim``."""
        return self.n_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused q, k, v projection."""
        return self.q_size + 2 * self.kv_size

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> ``(rows, cols)`` of every weight matrix, in the order of a forward pass.

        q, k, v are one matrix (rows in that order), and so are gate, up.
        """
        shapes: dict[str, tuple[int, int]] = {"embedding": (self.vocab_size, self.hidden_size)}
        for i in range(self.n_layers):
            shapes[f"layers.{i}.attn_qkv"] = (self.qkv_size, self.hidden_size)
            shapes[f"layers.{i}.attn_out"] = (self.hidden_size, self.q_size)
            shapes[f"layers.{i}.mlp_gate_up"] = (2 * self.intermediate_size, self.hidden_size)
            shapes[f"layers.{i}.mlp_down"] = (self.hidden_size, self.intermediate_size)
        if not self.tie_word_embeddings:
            shapes["head"] = (self.vocab_size, self.hidden_size)
        return shapes

    def norm_shapes(self) -> dict[str, int]:
        """Name -> length of every RMSNorm weight vector, in the order of a forward pass."""
        shapes: dict[str, int] = {}
        for i in range(self.n_layers):
            shapes[f"layers.{i}.attn_norm"] = self.hidden_size
            shapes[f"layers.{i}.mlp_norm"] = self.hidden_size
        shapes["final_norm"] = self.hidden_size
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for the file's ``config`` entry; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: object) -> ModelConfig:
        """Read ``to_dict``'s form from a file, trusting nothing.

        Raises ``FormatError`` for a wrong type, an implausible size or an unknown key, and
        ``UnsupportedModelError`` for a model this version cannot run.
        """
        if not isinstance(raw, Mapping):
            raise FormatError("config: expected a JSON object")
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(map(str, raw)) - names)
        if unknown:
            raise FormatError(f"config: unknown key {unknown[0]!r}; a newer edgedb may read it")
        values = dict(raw)
        values["rope_scaling"] = _rope_scaling(values.get("rope_scaling") or {})
        missing = sorted(
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.name not in values
        )
        if missing:
            raise FormatError(f"config: {missing[0]} is missing")
        return cls(**values)._checked()

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face ``config.json`` (already parsed).

        Keys that do not change the forward pass are ignored. Raises ``UnsupportedModelError``
        naming the feature that is not supported, ``FormatError`` for a missing or impossible value.
        """
        model_type = raw.get("model_type", "?")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UnsupportedModelError(
                f"model_type {model_type!r} is not supported; this version runs {known}"
            )
        _refuse_unsupported(raw)
        try:
            n_heads = raw["num_attention_heads"]
            hidden_size = raw["hidden_size"]
            values: dict[str, Any] = {
                "model_type": model_type,
                "vocab_size": raw["vocab_size"],
                "hidden_size": hidden_size,
                "intermediate_size": raw["intermediate_size"],
                "n_layers": raw["num_hidden_layers"],
                "n_heads": n_heads,
                "n_kv_heads": raw.get("num_key_value_heads") or n_heads,
                "head_dim": raw.get("head_dim") or _divide(hidden_size, n_heads),
                "max_position_embeddings": raw.get("max_position_embeddings", 2048),
                "norm_eps": raw.get("rms_norm_eps", 1e-6),
                "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
            }
        except KeyError as missing:
            raise FormatError(f"config.json: {missing.args[0]} is missing") from None
        # transformers 5 keeps theta and scaling together in rope_parameters.
        rope = raw.get("rope_parameters") or {}
        values["rope_theta"] = raw.get("rope_theta", rope.get("rope_theta", 10000.0))
        values["rope_scaling"] = _rope_scaling(raw.get("rope_scaling") or rope)
        return cls(**values)._checked()

    def _checked(self) -> ModelConfig:
        if not isinstance(self.model_type, str) or self.model_type not in FAMILIES:
            raise UnsupportedModelError(f"model_type {self.model_type!r} is not supported")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise FormatError(f"config: {name} = {value!r}, expected {low} to {high}")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
                raise FormatError(f"config: {name} = {value!r}, expected a positive number")
        if type(self.tie_word_embeddings) is not bool:
            raise FormatError("config: tie_word_embeddings must be true or false")
        if self.n_heads % self.n_kv_heads:
            raise FormatError(
                f"config: {self.n_heads} heads cannot share {self.n_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise FormatError(
                f"config: head_dim = {self.head_dim} is odd; rotary embedding needs pairs"
            )
        return self


def _divide(hidden_size: Any, n_heads: Any) -> int:
    if type(hidden_size) is not int or type(n_heads) is not int or n_heads <= 0:
        raise FormatError(
            "config.json: hidden_size and num_attention_heads must be positive integers"
        )
    if hidden_size % n_heads:
        raise FormatError(
            f"config.json: hidden_size {hidden_size} is no multiple of {n_heads} heads"
        )
    return hidden_size // n_heads


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Name the first feature that would make our logits wrong if it were ignored."""
    refusals = [
        (raw.get("attention_bias"), "biases in the attention projections (attention_bias)"),
        (raw.get("mlp_bias"), "biases in the feed-forward projections (mlp_bias)"),
        (
            raw.get("sliding_window"),
            f"sliding-window attention (sliding_window={raw.get('sliding_window')})",
        ),
        (
            raw.get("hidden_act", "silu") not in ("silu", "swish"),
            f"activation {raw.get('hidden_act')!r} (only silu)",
        ),
        (raw.get("num_local_experts") or raw.get("num_experts"), "mixture of experts"),
        (raw.get("partial_rotary_factor", 1.0) != 1.0, "partial rotary embedding"),
        (
            raw.get("quantization_config"),
            "checkpoints that are already quantized; export the original",
        ),
    ]
    for present, feature in refusals:
        if present:
            raise UnsupportedModelError(f"this model needs {feature}, which is not supported")


def _rope_scaling(raw: object) -> RopeScaling:
    if not isinstance(raw, Mapping):
        raise FormatError("config: rope_scaling must be a JSON object")
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope scaling {kind!r} is not supported; this version runs {', '.join(ROPE_TYPES)}"
        )
    values: dict[str, Any] = {"type": kind}
    if kind != "default":
        for field in dataclasses.fields(RopeScaling)[1:]:
            if raw.get(field.name) is not None:
                values[field.name] = raw[field.name]
        for name, value in values.items():
            if name != "type" and (
                type(value) not in (int, float) or not math.isfinite(value) or value <= 0
            ):
                raise FormatError(
                    f"config: rope_scaling.{name} = {value!r}, expected a positive number"
                )
    scaling = RopeScaling(**values)
    if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise FormatError("config: rope_scaling needs high_freq_factor above low_freq_factor")
    return scaling
