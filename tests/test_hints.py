"""What was meant by a name that there is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import edgedb
from edgedb.hints import suggestion


def test_suggestions() -> None:
    assert suggestion("temprature", ["temperature", "seed"]) == "; did you mean temperature?"
    assert suggestion("temp", ["top_p", "temperature"]) == "; did you mean temperature?"
    assert suggestion("xyz", ["temperature"]) == ""


@pytest.mark.parametrize(
    ("call", "name", "meant"),
    [
        (lambda: edgedb.load("m.dbb", thread=1), "thread", "threads"),  # type: ignore[call-arg]
        (lambda: edgedb.load("m.dbb", ctx=64), "ctx", "context"),  # type: ignore[call-arg]
        (lambda: edgedb.SamplingParams(temp=0.5), "temp", "temperature"),  # type: ignore[call-arg]
    ],
)
def test_an_unknown_option_is_told_the_one_that_was_meant(
    call: Callable[[], object], name: str, meant: str
) -> None:
    with pytest.raises(TypeError, match=f"^there is no option '{name}'; did you mean {meant}\\?$"):
        call()


def test_an_option_that_resembles_none() -> None:
    with pytest.raises(TypeError, match=r"^there is no option 'xyzzy'$"):
        edgedb.load("m.dbb", xyzzy=1)  # type: ignore[call-arg]


def test_options_are_seen_by_editors_and_given_on(tiny_model: Path) -> None:
    assert list(inspect.signature(edgedb.load).parameters)[:2] == ["path", "threads"]
    assert edgedb.load.__doc__ and edgedb.load.__doc__.startswith("Open a ``.dbb`` file")
    assert edgedb.load(path=tiny_model, backend="numpy", context=32).context == 32
