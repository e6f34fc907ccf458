"""A JSON schema as the grammar library takes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import EdgeDBError

MAX_NESTING = 100  # objects and lists in each other; the library reads 127

# Where a schema holds others: by itself or in a list, and under names of the writer's own.
WITHIN = frozenset(
    (
        *("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
    )
)
NAMED = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"))


def readable(schema: Any) -> Any:
    """A copy of ``schema`` without the formats that are unknown: to a validator, too, those are
    annotations. Raises ``EdgeDBError`` if it is nested too deeply (or holds itself)."""
    return _schema(schema, 1)


def _schema(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping):
        return _items(value, depth, _schema) if isinstance(value, (list, tuple)) else value
    _check(depth)
    copy = {}
    for key, item in value.items():
        if key == "format" and isinstance(item, str) and not _known(item):
            continue
        if key in WITHIN:
            copy[key] = _schema(item, depth + 1)
        elif key in NAMED and isinstance(item, Mapping):
            _check(depth + 1)
            copy[key] = {name: _schema(named, depth + 2) for name, named in item.items()}
        else:
            copy[key] = _data(item, depth + 1)
    return copy


def _data(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        _check(depth)
        return {key: _data(item, depth + 1) for key, item in value.items()}
    return _items(value, depth, _data) if isinstance(value, (list, tuple)) else value


def _items(values: Any, depth: int, copied: Any) -> list[Any]:
    _check(depth)
    return [copied(value, depth + 1) for value in values]


def _check(depth: int) -> None:
    if depth > MAX_NESTING:
        raise EdgeDBError(f"json_schema: nested more than {MAX_NESTING} deep")


@lru_cache(maxsize=256)
def _known(name: str) -> bool:
    """Whether the library gives texts of the format ``name`` their form."""
    from llguidance import LLMatcher

    probe = LLMatcher.grammar_from_json_schema({"type": "string", "format": name})
    return not LLMatcher.validate_grammar(probe, None)
