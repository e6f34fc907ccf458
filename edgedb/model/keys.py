"""What the keys of a checkpoint's settings do: a table instead of a row of questions.

A key is *honoured*, *refused* by name unless its value changes nothing, or *harmless*. A key that
is on no list may change the forward pass or not: whoever reads the checkpoint says its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..display import quoted
from ..errors import UnsupportedModelError

# Whether a value changes nothing, given the value and all settings beside it.
Neutral = Callable[[Any, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Refusal:
    """A key because of which "this model <fault>", unless its value is ``neutral``."""

    fault: str
    neutral: Neutral


@dataclass(frozen=True)
class Keys:
    """The lists for one kind of settings.

    fields: taken over as they are, under the name on the right; honoured: read by code that knows
    what they mean. A harmless name that ends in a dot stands for all keys that begin with it.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    honoured: frozenset[str] = frozenset()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()

    def check(self, settings: Mapping[str, Any], prefix: str = "") -> list[str]:
        """The keys of ``settings`` that are on no list, each with ``prefix`` before it.

        Raises ``UnsupportedModelError`` for a value that would change the forward pass; the message
        names the key.
        """
        for key, refusal in self.refused.items():
            if key in settings and not refusal.neutral(settings[key], settings):
                value = quoted(settings[key])
                raise UnsupportedModelError(f"this model {refusal.fault} ({prefix}{key} = {value})")
        return [f"{prefix}{key}" for key in settings if not self.lists(key)]

    def but(
        self,
        *,
        fields: Mapping[str, str] | None = None,
        honoured: str = "",
        refused: Mapping[str, Refusal] | None = None,
        harmless: str = "",
    ) -> Keys:
        """The same with these keys on these lists, and on no other."""
        moved = {*(fields or {}), *names(honoured), *(refused or {}), *names(harmless)}
        return Keys(
            {**{k: name for k, name in self.fields.items() if k not in moved}, **(fields or {})},
            (self.honoured - moved) | names(honoured),
            {**{k: r for k, r in self.refused.items() if k not in moved}, **(refused or {})},
            (self.harmless - moved) | names(harmless),
        )

    def lists(self, key: str) -> bool:
        """Whether it is known what ``key`` does."""
        return (
            key in self.fields
            or key in self.honoured
            or key in self.refused
            or key in self.harmless
            or any(key.startswith(name) for name in self.harmless if name.endswith("."))
        )


def names(text: str) -> frozenset[str]:
    """The words of ``text``."""
    return frozenset(text.split())


def needs(feature: str, neutral: Neutral) -> Refusal:
    """The refusal of a feature that the forward pass lacks."""
    return Refusal(f"needs {feature}, which is not supported", neutral)


def only(*values: Any) -> Neutral:
    """One of these values; a switch is not a number, though Python's ``False == 0``."""
    return lambda value, _: any(
        value == one and isinstance(value, bool) is isinstance(one, bool) for one in values
    )


def each(*values: Any) -> Neutral:
    """A list of nothing else than these values."""
    return lambda value, _: isinstance(value, list) and all(one in values for one in value)


def equals(key: str) -> Neutral:
    """The same as the setting ``key``."""
    return lambda value, settings: bool(value == settings.get(key))


def either(*conditions: Neutral) -> Neutral:
    """What one of these finds neutral."""
    return lambda value, settings: any(neutral(value, settings) for neutral in conditions)


def at_least(key: str) -> Neutral:
    """An integer no smaller than that of the setting ``key``."""

    def neutral(value: Any, settings: Mapping[str, Any]) -> bool:
        other = settings.get(key)
        return type(value) is int and type(other) is int and value >= other

    return neutral


def at_least_one(value: Any, settings: Mapping[str, Any]) -> bool:
    """A whole number from 1 on."""
    return type(value) is int and value >= 1
