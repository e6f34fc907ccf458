"""Objects of a JSON schema without members that it does not name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .json_schema import NAMED, WITHIN, readable

# Keywords that look at an object together with others: closed, they could accept what they refuse
# now, or nothing at all.
_TOGETHER = frozenset(
    (
        *("allOf", "oneOf", "not", "if", "then", "else", "contains"),
        *("dependentSchemas", "dependencies", "unevaluatedProperties"),
    )
)
# With these a schema says itself which other members there may be.
_OPEN = frozenset(
    ("additionalProperties", "patternProperties", "propertyNames", "minProperties", "anyOf", "$ref")
)


def closed(schema: Any) -> Any:
    """A copy of ``schema`` whose objects have the ``properties`` that are named and no others,
    unless it says what others there may be. What the copy accepts, ``schema`` accepts.

    To a validator an object may have any other member, and a small model then writes some until
    its tokens are used up. Engines that make a grammar of a schema mostly close them. Raises
    ``EdgeDBError`` as ``readable`` does.
    """
    plain = readable(schema)
    return plain if any(map(_is_entangled, _schemas(plain))) else _close(plain)


def _schemas(value: Any) -> Iterator[Mapping[str, Any]]:
    """``value``, if it is a schema, and all within it."""
    if isinstance(value, list):
        for item in value:
            yield from _schemas(item)
    if not isinstance(value, Mapping):
        return
    yield value
    for key, item in value.items():
        if key in WITHIN:
            yield from _schemas(item)
        elif key in NAMED and isinstance(item, Mapping):
            for named in item.values():
                yield from _schemas(named)


def _is_entangled(schema: Mapping[str, Any]) -> bool:
    """Whether several schemas look at the same object."""
    here = ("properties" in schema) + ("anyOf" in schema) + ("$ref" in schema)
    return here > 1 or not _TOGETHER.isdisjoint(schema)


def _close(value: Any) -> Any:
    if isinstance(value, list):
        return [_close(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    copy = {}
    for key, item in value.items():
        if key in WITHIN:
            item = _close(item)
        elif key in NAMED and isinstance(item, Mapping):
            item = {name: _close(named) for name, named in item.items()}
        copy[key] = item
    if _OPEN.isdisjoint(value) and _names_all(value.get("properties"), value.get("required", [])):
        copy["additionalProperties"] = False
    return copy


def _names_all(properties: Any, required: Any) -> bool:
    """Whether there are ``properties``, and those that must be are among them."""
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return False
    return all(name in properties for name in required)
