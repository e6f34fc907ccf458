"""What a schema loses before the grammar library reads it, and how deep it may be."""

from __future__ import annotations

from typing import Any

import pytest

from edgedb import EdgeDBError
from edgedb.choose.json_schema import MAX_NESTING, readable

pytest.importorskip("llguidance", reason="needs pip install '.[grammar]'")

COLOUR = {"type": "string", "format": "colour"}


@pytest.mark.parametrize(
    "place",
    [
        lambda schema: schema,
        lambda schema: {"items": schema, "prefixItems": [True, schema]},
        lambda schema: {"properties": {"format": schema}, "additionalProperties": schema},
        lambda schema: {"$defs": {"a": schema}, "anyOf": [schema, {"not": schema}]},
        lambda schema: {"if": schema, "then": {"patternProperties": {"^a": schema}}},
    ],
)
def test_formats_that_are_unknown_are_dropped_wherever_a_schema_stands(place: Any) -> None:
    assert readable(place(COLOUR)) == place({"type": "string"})
    date = {"type": "string", "format": "date"}
    assert readable(place(date)) == place(date)


@pytest.mark.parametrize("key", ["const", "enum", "default", "examples", "title"])
def test_values_keep_what_looks_like_a_format(key: str) -> None:
    assert readable({key: [COLOUR]}) == {key: [COLOUR]}
    assert readable({key: COLOUR}) == {key: COLOUR}


def nested(depth: int, key: str, inner: Any) -> Any:
    for _ in range(depth):
        inner = {key: inner}
    return inner


@pytest.mark.parametrize("key", ["items", "const", "properties", "anyOf"])
def test_depth(key: str) -> None:
    deep = nested(MAX_NESTING, key, 1)
    assert readable(deep) == deep
    for schema in (nested(MAX_NESTING + 1, key, 1), nested(50_000, key, 1)):
        with pytest.raises(EdgeDBError, match="nested more than 100 deep"):
            readable(schema)
    lists: list[Any] = []
    lists.append(lists)
    with pytest.raises(EdgeDBError, match="nested more than 100 deep"):
        readable({key: lists})
