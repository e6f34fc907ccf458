"""JSON of a header: what takes long to read is refused before it is read, and never written."""

from __future__ import annotations

import pytest
from quick import within

from edgedb import FormatError
from edgedb.format.container import MAX_HEADER_BYTES, render_header
from edgedb.strict_json import MAX_VALUES, parse_json

PIECES = ['"a",', "1,", "[],", "{},", '{"a":1},', "[[[[[[[[]]]]]]]],", "1e5,"]


@pytest.mark.parametrize("piece", PIECES)
def test_json_of_any_content_is_read_or_refused_within_seconds(piece: str) -> None:
    text = "[" + piece * (MAX_HEADER_BYTES // len(piece)) + "1]"

    def refused(given: str | bytes) -> None:
        with pytest.raises(FormatError, match=f"here: more than {MAX_VALUES} values"):
            parse_json(given, "here")

    within(1, lambda: refused(text))
    within(1, lambda: refused(text.encode()))


@pytest.mark.parametrize("piece", PIECES)
def test_what_is_just_short_enough_is_read_within_seconds(piece: str) -> None:
    weight = piece.count(",") + 4 * (piece.count("[") + piece.count("{"))
    text = "[" + piece * ((MAX_VALUES - 4) // weight) + "1]"
    assert within(3, lambda: parse_json(text, "here"))


def test_what_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(FormatError, match="values"):
        render_header({"extra": "," * (MAX_VALUES + 1)}, {})
