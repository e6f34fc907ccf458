"""Numbers of planes, and how people say them."""

import math

import pytest

from edgedb.format.tensors import MAX_PLANES, kind_text, planes_of

PLANES = [
    (1, 2, "1 pair"),
    (1.5, 3, "1.5 pairs"),
    (2, 4, "2 pairs"),
    (7.5, 15, "7.5 pairs"),
    (8, MAX_PLANES, "8 pairs"),
]


@pytest.mark.parametrize(("pairs", "planes", "text"), PLANES)
def test_planes_and_pairs(pairs, planes, text):
    assert planes_of(pairs) == planes
    assert kind_text(planes) == text


@pytest.mark.parametrize("pairs", [0, 0.5, 1.25, 8.5, -1, math.nan, math.inf])
def test_what_no_file_holds_is_refused(pairs):
    with pytest.raises(ValueError, match="1 to 8 in steps of a half"):
        planes_of(pairs)


def test_other_kinds_are_their_names():
    assert kind_text("int8") == "int8"
