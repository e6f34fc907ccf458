"""The members of a request's body, taken one by one; what is left over is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..display import quoted
from ..hints import suggestion
from .errors import bad_value, unsupported

Kind = TypeVar("Kind")

_WORDS: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    dict: "an object",
}


class Fields:
    """A JSON object of a request. A member that is null counts as absent."""

    def __init__(self, body: object, where: str = "") -> None:
        """``where``: the object's own name in errors, with a dot behind it."""
        if not isinstance(body, Mapping):
            raise bad_value(f"{where or 'the body'}: expected a JSON object", where or None)
        self._left = {str(key): value for key, value in body.items() if value is not None}
        self._known: set[str] = set()
        self._where = where

    def name(self, key: str) -> str:
        """``key`` as errors call it."""
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str, default: Any = None) -> Any:
        """The member ``key``, whatever it is."""
        self._known.add(key)
        return self._left.pop(key, default)

    def typed(self, key: str, kind: type[Kind], default: Kind | None = None) -> Kind | None:
        """The member ``key``, of the JSON type ``kind``."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            name = self.name(key)
            raise bad_value(f"{name} = {quoted(value)}: expected {_WORDS[kind]}", name)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """The member ``key``, true or false."""
        return bool(self.typed(key, bool, default))

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """The member ``key``, one of some words."""
        value, words = self.take(key, default), tuple(choices)
        if value not in words:
            name = self.name(key)
            raise bad_value(f"{name} = {quoted(value)}: expected {', '.join(words)}", name)
        return str(value)

    def required(self, key: str, kind: type[Kind]) -> Kind:
        """The same as ``typed``, but it must be there."""
        value = self.typed(key, kind)
        if value is None:
            name = self.name(key)
            raise bad_value(f"{name} is missing: expected {_WORDS[kind]}", name)
        return value

    def ignore(self, *keys: str) -> None:
        """Members that change nothing here."""
        for key in keys:
            self.take(key)

    def refuse(self, *keys: str, unless: Iterable[Any] = ()) -> None:
        """Members that ask for what there is not, unless they ask for what is so anyway."""
        harmless = [False, *unless]
        for key in keys:
            value = self.take(key)
            if value is not None and value not in harmless and value not in ([], {}, ""):
                raise unsupported(self.name(key))

    def finish(self) -> None:
        """Raises ``Refused`` by name if a member is left that nobody took."""
        for key in self._left:
            hint = suggestion(key, sorted(self._known))
            raise unsupported(self.name(key)[:80], f"there is no such option{hint}")
