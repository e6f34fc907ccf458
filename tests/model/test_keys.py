"""Lists of keys: what is refused, what changes nothing, what is on no list."""

from __future__ import annotations

import pytest

from edgedb.errors import UnsupportedModelError
from edgedb.model.keys import Keys, Neutral, at_least, each, either, equals, names, needs, only

KEYS = Keys(
    fields={"width": "hidden_size"},
    honoured=names("rope"),
    refused={"window": needs("windows", at_least("context")), "norm": needs("norms", only(False))},
    harmless=names("dropout general."),
)


def test_a_value_that_changes_nothing_passes() -> None:
    known = {"width": 4, "rope": {}, "window": 8, "norm": False, "dropout": 0.1, "general.name": 1}
    assert KEYS.check({**known, "context": 8}) == ["context"]


@pytest.mark.parametrize(("key", "value"), [("window", 7), ("window", True), ("norm", 0)])
def test_another_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"not supported \(a\.{key} = {value}\)"):
        KEYS.check({"context": 8, key: value}, "a.")


def test_keys_on_no_list_are_returned_with_their_prefix() -> None:
    assert KEYS.check({"depth": 1, "dropout.rate": 1, "width": 2}, "a.") == [
        "a.depth",
        "a.dropout.rate",
    ]


@pytest.mark.parametrize(
    ("neutral", "passing", "failing"),
    [
        (only(1.0), [1, 1.0], [True, 0.5, "1", None, []]),
        (only(False), [False], [0, 0.0, True, None]),
        (only({}), [{}], [None, {"bits": 4}, []]),
        (only(), [], [None, 0, False]),
        (each(0), [[], [0, 0]], [0, [0, 1], None]),
        (equals("n"), [8, 8.0], [7, None, "8"]),
        (at_least("n"), [8, 9], [7, 8.5, True, None]),
        (either(only(0), at_least("n")), [0, 8], [1, None]),
    ],
)
def test_neutral_values(neutral: Neutral, passing: list, failing: list) -> None:
    settings = {"n": 8}
    assert [value for value in passing if not neutral(value, settings)] == []
    assert [value for value in failing if neutral(value, settings)] == []
