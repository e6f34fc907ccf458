"""What a model is: its hyper-parameters, and the bounds of what the forward pass can run.

A ``.dbb`` carries ``to_dict()``; a checkpoint's config.json is read by ``checkpoint_config.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..display import quoted
from ..errors import FormatError, UnsupportedModelError
from ..ops.values import ACTIVATIONS, Growth
from .rotary import UNSCALED, Rope, RopeScaling, check_floats

# A cache as long as the longest published context would reserve gigabytes that a chat never uses.
DEFAULT_CONTEXT = 8192

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
_FLOAT_BOUNDS = {"norm_eps": (1e-20, 1.0)}
_CAP_BOUNDS = (1e-3, 1e6)
_GROWTH_BOUNDS = {"beta": (0.0, 1e3), "every": (1, 1 << 24)}
# Those of the C library; the largest published models have 512 experts and take 22 a token.
MAX_EXPERTS, MAX_CHOSEN = 4096, 128


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
    rope_scaling: RopeScaling = UNSCALED
    tie_word_embeddings: bool = False
    # Features, from here on: what a plain Llama has none of.
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    windowed_layers: tuple[int, ...] | None = None  # those with the window; None: all
    parallel: bool = False  # feed-forward beside attention; where a family has both ways
    shared_norm: bool = False  # which reads what attention reads; likewise
    activation: str | None = None  # of the feed-forward; None: the one that its family has
    rotary_dim: int | None = None  # channels of a head that turn; None: all
    unrotated_layers: tuple[int, ...] = ()  # whose heads do not turn
    windowed_rope: Rope | None = None  # of windowed layers; None: that of all
    query_growth: Growth | None = None
    n_experts: int = 0  # of a layer's feed-forward; 0: it is a dense one, of intermediate_size
    experts_per_token: int = 0
    expert_size: int = 0  # what intermediate_size is to a dense feed-forward
    normalized_shares: bool = False  # a token's shares in its experts add up to 1
    dense_layers: tuple[int, ...] = ()  # those without experts
    gate_alpha: float = 1.702  # of a clamped gate, gpt-oss's
    gate_limit: float = 7.0
    score_cap: float | None = None  # scores become cap * tanh(score / cap)
    logit_cap: float | None = None  # and logits
    norms_behind: bool = False  # of the stream, behind each addition; none before the head
    alibi: bool = False  # scores that lose by distance; where a family has both ways

    def rope(self, layer: int) -> Rope | None:
        """What this layer's heads turn by."""
        if layer in self.unrotated_layers:
            return None
        if self.windowed_rope is not None and layer in (self.windowed_layers or ()):
            return self.windowed_rope
        return Rope(self.rope_theta, self.rope_scaling)

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, its own included; None: all before it."""
        if self.windowed_layers is None or layer in self.windowed_layers:
            return self.sliding_window
        return None

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward of this layer is a mixture of experts."""
        return self.n_experts > 0 and layer not in self.dense_layers

    @property
    def plain_context(self) -> int:
        """Positions up to which a model is what it is in short texts (longrope), or all."""
        if self.rope_scaling.type == "longrope":
            return self.rope_scaling.original_max_position_embeddings
        return self.max_position_embeddings

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

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for the file's ``config`` entry; ``from_dict`` reads it back.

        A model without features has version 1, which every edgedb reads.
        """
        values = dataclasses.asdict(self) | {"rope_scaling": self.rope_scaling.to_dict()}
        given = {name: values.pop(name) for name in _FEATURES}
        features = {n: v for n, v in given.items() if getattr(self, n) != _FEATURES[n]}
        if self.windowed_rope is not None:
            features["windowed_rope"] = self.windowed_rope.to_dict()
        return {"version": 2, **values, "features": features} if features else values

    @classmethod
    def from_dict(cls, raw: object) -> ModelConfig:
        """Read ``to_dict``'s form from a file, trusting nothing.

        Raises ``FormatError`` for a wrong type, an implausible size or an unknown key, and
        ``UnsupportedModelError`` for a model this version cannot run.
        """
        if not isinstance(raw, Mapping):
            raise FormatError("config: expected a JSON object")
        values = dict(raw)
        version = values.pop("version", 1)
        if version not in (1, 2) or isinstance(version, bool):
            raise UnsupportedModelError(
                f"config: version {quoted(version)}; this edgedb reads 1 and 2"
            )
        features = values.pop("features", {}) if version == 2 else {}
        if not isinstance(features, Mapping):
            raise FormatError("config: features must be a JSON object")
        _refuse_unknown("feature", features, set(_FEATURES))
        _refuse_unknown("key", values, {f.name for f in dataclasses.fields(cls)} - set(_FEATURES))
        values |= features
        for name in ("windowed_layers", "unrotated_layers", "dense_layers"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if values.get("windowed_rope") is not None:
            values["windowed_rope"] = Rope.from_dict(values["windowed_rope"])
        if values.get("query_growth") is not None:
            values["query_growth"] = _growth(values["query_growth"])
        values["rope_scaling"] = RopeScaling.from_dict(values.get("rope_scaling") or {})
        missing = sorted(
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.name not in values
        )
        if missing:
            raise FormatError(f"config: {missing[0]} is missing")
        return cls(**values).checked()

    def checked(self) -> ModelConfig:
        """The same, if this version can run it.

        Raises ``FormatError`` for a value that no model has, ``UnsupportedModelError`` for a rotary
        scaling of another kind.
        """
        if not isinstance(self.model_type, str):
            raise FormatError(f"config: model_type = {quoted(self.model_type)}, expected a name")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise FormatError(f"config: {name} = {quoted(value)}, expected {low} to {high}")
        check_floats("", self, _FLOAT_BOUNDS)
        for name in _SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise FormatError(f"config: {name} must be true or false")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise FormatError(
                f"config: activation = {quoted(self.activation)}, "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        for name in ("score_cap", "logit_cap"):
            if getattr(self, name) is not None:
                check_floats("", self, {name: _CAP_BOUNDS})
        self._check_layers()
        self._check_experts()
        if self.n_heads % self.n_kv_heads:
            raise FormatError(
                f"config: {self.n_heads} heads cannot share {self.n_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise FormatError(
                f"config: head_dim = {self.head_dim} is odd; rotary embedding needs pairs"
            )
        self._check_rope()
        return self

    def _check_rope(self) -> None:
        dim = self.head_dim if self.rotary_dim is None else self.rotary_dim
        if type(dim) is not int or not 2 <= dim <= self.head_dim or dim % 2:
            raise FormatError(
                f"config: rotary_dim = {quoted(dim)}, expected an even number of 2 to head_dim"
            )
        Rope(self.rope_theta, self.rope_scaling).check(dim // 2)
        if self.windowed_rope is not None:
            if not isinstance(self.windowed_rope, Rope):
                raise FormatError("config: windowed_rope has theta and scaling")
            self.windowed_rope.check(dim // 2)
        if self.query_growth is not None:
            check_floats("query_growth.", self.query_growth, _GROWTH_BOUNDS)

    def _check_layers(self) -> None:
        window = self.sliding_window
        if window is not None and (type(window) is not int or not 1 <= window <= 1 << 24):
            raise FormatError(f"config: sliding_window = {quoted(window)}, expected 1 to {1 << 24}")
        for name in ("windowed_layers", "unrotated_layers", "dense_layers"):
            layers = getattr(self, name)
            if layers is None and name == "windowed_layers":
                continue
            numbers = isinstance(layers, tuple) and all(type(i) is int for i in layers)
            if not numbers or any(not 0 <= i < self.n_layers for i in layers):
                raise FormatError(f"config: {name} = {quoted(layers)}, expected numbers of layers")

    def _check_experts(self) -> None:
        if type(self.n_experts) is int and self.n_experts == 0:
            return
        check_floats("", self, {"gate_alpha": (1e-3, 1e3), "gate_limit": (1e-3, 1e6)})
        self._check_size("n_experts", MAX_EXPERTS)
        self._check_size("experts_per_token", min(MAX_CHOSEN, self.n_experts))
        self._check_size("expert_size", _BOUNDS["intermediate_size"][1])

    def _check_size(self, name: str, most: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not 1 <= value <= most:
            raise FormatError(f"config: {name} = {quoted(value)}, expected 1 to {most}")


_FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
_SWITCHES = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.default is False)
# name -> what a model has that does not say it
_FEATURES = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)[_FIELDS.index("attention_bias") :]
}


def _growth(raw: object) -> Growth:
    if not isinstance(raw, Mapping) or set(raw) != {"beta", "every"}:
        raise FormatError("config: query_growth has beta and every")
    return Growth(**raw)


def _refuse_unknown(what: str, given: Mapping[Any, Any], known: Collection[str]) -> None:
    unknown = sorted(set(map(str, given)) - set(known))
    if unknown:
        raise FormatError(
            f"config: unknown {what} {quoted(unknown[0])}; a newer edgedb may read it"
        )
