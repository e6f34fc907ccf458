"""Objects of a schema lose the members that nobody named, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from edgedb.choose.closed_schema import closed

pytest.importorskip("llguidance", reason="needs pip install '.[grammar]'")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED = {**CITY, "additionalProperties": False}


@pytest.mark.parametrize(
    "place",
    [
        lambda one: one,
        lambda one: {"type": "array", "items": one},
        lambda one: {"anyOf": [one, {"type": "null"}]},
        lambda one: {"$defs": {"City": one}, "$ref": "#/$defs/City"},
        lambda one: {
            "type": "object",
            "properties": {"properties": one, "n": {"type": "integer"}},
            "additionalProperties": one,
        },
    ],
)
def test_what_names_its_members_has_no_others(place: Any) -> None:
    before = place(CITY)
    kept = copy.deepcopy(before)
    assert closed(before) == place(CLOSED)
    assert before == kept
    assert closed(place(CLOSED)) == place(CLOSED)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**CITY, "additionalProperties": True},
        {**CITY, "additionalProperties": {"type": "integer"}},
        {**CITY, "patternProperties": {"^x": {}}},
        {**CITY, "required": ["city", "country"]},  # closed, nothing would do
        {**CITY, "minProperties": 2},
        {**CITY, "anyOf": [{"required": ["city"]}]},
        {"$ref": "#/$defs/City", "properties": {"n": {}}, "$defs": {"City": CITY}},
        # Together they have members that each of them does not name.
        {"allOf": [CITY, {"properties": {"n": {"type": "integer"}}}]},
        {"items": CITY, "contains": {"allOf": [CITY]}},
        # Closed, both could not be right any more, and exactly one has to be.
        {"oneOf": [CITY, {"properties": {"n": {"type": "integer"}}}]},
        {"not": CITY},
        {"if": CITY, "then": {"properties": {"n": {}}}},
        {"const": CITY, "default": CITY},
        True,
    ],
)
def test_what_says_what_there_may_be_stays_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema
