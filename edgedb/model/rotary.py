"""What a rotary embedding is: its theta, and how its frequencies are scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..display import quoted
from ..errors import FormatError, UnsupportedModelError

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")

# No frequency is above 4 radians a position: 2^24 of them reach exactmath's largest angle.
_THETA_BOUNDS = (1.0, 1e15)
_SCALING_BOUNDS = {
    "factor": (0.25, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    "original_max_position_embeddings": (1, 1 << 24),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "attention_factor": (1e-3, 1e3),
}
# Parameters that not every type has -> the types that have them.
_OF_TYPES = {
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn", "longrope"),
    "short_factors": ("longrope",),
    "long_factors": ("longrope",),
    "truncate": ("yarn",),
}


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of the rotary embedding; ``type`` is one of ``ROPE_TYPES``.

    ``linear`` divides every frequency by ``factor``. ``llama3`` (Llama 3.1) divides low
    frequencies by ``factor``, keeps high ones, and blends in between. So does ``yarn``
    (arXiv 2309.00071), whose bounds are turns, and which lengthens what it rotates. ``longrope``
    (arXiv 2402.13753) divides each frequency by a number of its own: by one of ``short_factors``,
    or of ``long_factors`` where the context has more than ``original_max_position_embeddings``.
    """

    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    # of some types alone
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # what cosines and sines are multiplied by
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    truncate: bool = True  # yarn's bounds are whole channels

    def to_dict(self) -> dict[str, Any]:
        """``from_dict`` reads it back; what only some types have is there only for them."""
        values = dataclasses.asdict(self)
        if self.truncate:  # as all files have it that do not say
            del values["truncate"]
        return {k: values[k] for k in values if self.type in _OF_TYPES.get(k, ROPE_TYPES)}

    @classmethod
    def from_dict(cls, raw: object) -> RopeScaling:
        """Read ``to_dict``'s form, trusting nothing.

        Raises ``FormatError`` for anything but an object with these keys.
        """
        if not isinstance(raw, Mapping):
            raise FormatError("config: rope_scaling must be a JSON object")
        kind = raw.get("type", "default")
        names = [field.name for field in dataclasses.fields(cls)]
        known = {name for name in names if kind in _OF_TYPES.get(name, (kind,))}
        unknown = sorted(set(map(str, raw)) - known)
        if unknown:
            raise FormatError(
                f"config: unknown key rope_scaling.{unknown[0]}; a newer edgedb may read it"
            )
        values: dict[str, Any] = {}
        for name, value in raw.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def check(self) -> None:
        """Raise ``FormatError`` for values that no model has, and for an unknown ``type``
        ``UnsupportedModelError``: what passes has a finite angle at every position."""
        if not isinstance(self.type, str) or self.type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rope scaling {quoted(self.type)} is not supported; "
                f"this version runs {', '.join(ROPE_TYPES)}"
            )
        check_floats("rope_scaling.", self, _SCALING_BOUNDS)
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if not isinstance(factors, tuple) or any(
                type(f) not in (int, float) or not _SCALING_BOUNDS["factor"][0] <= f <= 1e6
                for f in factors
            ):
                raise FormatError(f"config: rope_scaling.{name}, expected numbers of 0.25 to 1e6")
        if type(self.truncate) is not bool:
            raise FormatError("config: rope_scaling.truncate must be true or false")
        if self.type == "yarn" and self.beta_fast <= self.beta_slow:
            raise FormatError("config: rope_scaling needs beta_fast above beta_slow")
        if self.type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise FormatError("config: rope_scaling needs high_freq_factor above low_freq_factor")


UNSCALED = RopeScaling()


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: frequencies are ``theta ** (-2i / dim)``, and scaled."""

    theta: float
    scaling: RopeScaling = UNSCALED

    def to_dict(self) -> dict[str, Any]:
        """``from_dict`` reads it back."""
        return {"theta": self.theta, "scaling": self.scaling.to_dict()}

    @classmethod
    def from_dict(cls, raw: object) -> Rope:
        """Read ``to_dict``'s form, trusting nothing; ``FormatError`` for anything else."""
        if not isinstance(raw, Mapping) or set(raw) != {"theta", "scaling"}:
            raise FormatError("config: a rotary embedding has theta and scaling")
        return cls(raw["theta"], RopeScaling.from_dict(raw["scaling"]))

    def check(self, pairs: int) -> None:
        """Raise as ``RopeScaling.check``; ``pairs`` of channels turn."""
        low, high = _THETA_BOUNDS
        if type(self.theta) not in (int, float) or not low <= self.theta <= high:
            raise FormatError(
                f"config: rope_theta = {quoted(self.theta)}, expected {low:g} to {high:g}"
            )
        self.scaling.check()
        for factors in (self.scaling.short_factors, self.scaling.long_factors):
            if len(factors) != (pairs if self.scaling.type == "longrope" else 0):
                raise FormatError(
                    f"config: rope_scaling has {len(factors)} factors for {pairs} pairs of channels"
                )


def check_floats(prefix: str, of: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raise ``FormatError`` for a field of ``of`` that is no number within its ``bounds``; it is
    named with ``prefix`` before it."""
    for name, (low, high) in bounds.items():
        value = getattr(of, name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise FormatError(
                f"config: {prefix}{name} = {quoted(value)}, expected {low:g} to {high:g}"
            )
