"""What callers may pass: rules that check an argument once, where it comes in.

A rule takes the argument's name and value. It returns the value in the one form that the rest of
the program relies on (numpy's and other integers as ``int``, lists as tuples), or raises
``EdgeDBError`` with the name, the value and what is expected. A ``bool`` is no number.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .display import quoted
from .errors import EdgeDBError

T = TypeVar("T")
Key = TypeVar("Key")
Rule = Callable[[str, Any], T]

# Numbers meet logits, which are float32: so far from its limits, products and sums stay finite.
LARGEST = 1e30
SMALLEST = 1e-30  # where 0 is none


def rule(expected: str, take: Callable[[Any], T]) -> Rule[T]:
    """What ``take`` returns; it raises ``TypeError``, ``ValueError`` or ``OverflowError``."""

    def check(name: str, value: Any) -> T:
        try:
            return take(value)
        except (TypeError, ValueError, OverflowError):
            raise EdgeDBError(f"{name} = {quoted(value)}: expected {expected}") from None

    return check


def optional(check: Rule[Any], default: Any = None) -> Rule[Any]:
    """The same, or None for ``default``."""
    return lambda name, value: default if value is None else check(name, value)


def whole(low: int = 0, high: int | None = None, what: str = "a whole number") -> Rule[int]:
    """An integer of any library, ``low`` to ``high``."""

    def take(value: Any) -> int:
        found = _integer(value)
        if found < low or (high is not None and found > high):
            raise ValueError
        return found

    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    return rule(f"{what} {bounds}", take)


def number(
    low: float = -LARGEST, high: float = LARGEST, *, also: float | None = None
) -> Rule[float]:
    """A number ``low`` to ``high``, or ``also``."""

    def take(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        found = float(value)
        if found != also and not low <= found <= high:
            raise ValueError
        return found

    more = "" if also is None else f" or {also:g}"
    return rule(f"a number from {low:g} to {high:g}{more}", take)


def choice(*choices: T) -> Rule[T]:
    """One of some words or whole numbers."""

    def take(value: Any) -> T:
        found = value if isinstance(value, str) else _integer(value)
        return choices[choices.index(found)]

    *others, last = map(str, choices)
    return rule(f"{', '.join(others)} or {last}" if others else last, take)


def instance(cls: type[T], what: str) -> Rule[T]:
    """An object of a class."""

    def take(value: Any) -> T:
        if not isinstance(value, cls):
            raise TypeError
        return value

    return rule(what, take)


def each(check: Rule[T], what: str, alone: Any = ()) -> Rule[tuple[T, ...]]:
    """Values in an order, or one of the class ``alone``; an error names the position of the wrong
    one."""

    def check_all(name: str, value: Any) -> tuple[T, ...]:
        if isinstance(value, alone):
            return (check(name, value),)
        return tuple(check(f"{name}[{i}]", item) for i, item in enumerate(items(name, value)))

    items = rule(what, _items)
    return check_all


def pairs(key: Rule[Key], check: Rule[T], what: str) -> Rule[dict[Key, T]]:
    """A mapping; an error names the key."""
    mapping: Rule[Mapping[Any, Any]] = instance(Mapping, what)  # type: ignore[type-abstract]

    def check_all(name: str, value: Any) -> dict[Key, T]:
        entries = mapping(name, value).items()
        return {key(f"a key of {name}", k): check(f"{name}[{quoted(k)}]", v) for k, v in entries}

    return check_all


def token_ids(vocab_size: int, what: str = "a list of token ids") -> Rule[list[int]]:
    """Ids of tokens of a vocabulary, in their order."""
    items = rule(what, _items)
    one = whole(0, vocab_size - 1, "a token id")

    def check(name: str, value: Any) -> list[int]:
        ids = items(name, value)
        if all(type(i) is int and 0 <= i < vocab_size for i in ids):  # thousands are usual
            return ids
        return [one(f"{name}[{at}]", i) for at, i in enumerate(ids)]

    return check


def _integer(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)


def _items(value: Any) -> list[Any]:
    # A text is no list of texts, bytes are no list of ids, and of a mapping nobody means the keys.
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        raise TypeError
    if not isinstance(value, Iterable):
        raise TypeError
    return list(value.tolist() if hasattr(value, "tolist") else value)


def _path(value: Any) -> Path:
    name = os.fspath(value)
    if not isinstance(name, str) or b"\0" in os.fsencode(name):
        raise TypeError
    return Path(name)


def _words(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _unicode(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a lone surrogate is a ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _function(value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError
    return value


token_id = whole(0, (1 << 31) - 1, "a token id")
flag = rule("True or False", _flag)
function = rule("a function", _function)
path = rule("the path of a file", _path)
text = instance(str, "a text")
unicode = rule("a text that is valid Unicode", _unicode)
words = rule("a text that is not empty", _words)
