"""Text of others on its way to a reader: what it may not do there, whatever it holds."""

from __future__ import annotations

import pickle
import unicodedata
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgedb.display import LINE_CHARS, one_line, printable, quoted
from edgedb.errors import EdgeDBError, FormatError

# Surrogates too: file names that are no UTF-8 have them.
TEXTS = st.text(st.characters(codec=None), max_size=50)
LONG = TEXTS.map(lambda text: text * 200)
STEERING = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


def is_one_line(text: str, limit: int = LINE_CHARS) -> bool:
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    joiners = "\u200c\u200d"
    seen = all(c in joiners or unicodedata.category(c) not in unseen for c in text)
    return seen and len(text.splitlines()) <= 1 and len(text) <= limit


def test_answers_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\x07b\x9b1m\r\n\tc é") == "a[2Jb1m\n\tc é"
    assert printable("user\u202etxt.exe\u2066x\u2028y") == "usertxt.exex\ny"
    for text in ("שלום\u200f!", "👩\u200d💻", "क\u200cष"):  # marks that only shape their neighbours
        assert printable(text) == text


@given(st.lists(st.text(st.sampled_from([*map(chr, STEERING), "a", "é", "\u2028", "🙂"]))))
def test_pieces_are_cleaned_like_the_whole(pieces: list[str]) -> None:
    text = printable("".join(pieces))
    assert text == "".join(map(printable, pieces))
    assert not {ord(c) for c in text} & ({*STEERING, 0x2028, 0x2029} - {0x0A, 0x09})


def test_one_line_says_what_was_there() -> None:
    assert one_line("a\x1b[31mb\nc\td\x9b\u202e\udc80") == r"a\x1b[31mb\nc\td\x9b\u202e\udc80"
    plain = "models/Zwölf 日本\u3000👩\u200d💻 №7.dbb"
    assert one_line(plain) == plain
    assert one_line("abcdefghij" * 10, 20) == "abcdefghijab...fghij"


@given(LONG | TEXTS, st.integers(10, 700))
@example("\U000e0001" * 100, 99)
def test_one_line_is_one_line(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert is_one_line(shown, limit)
    assert one_line(shown, limit) == shown


@given(st.recursive(st.none() | st.floats() | st.integers() | LONG | st.binary(), st.lists))
@example(10**5000)
@example({"a": ["x" * 10_000] * 10_000})
@example(np.zeros((50, 50)))
def test_any_value_can_be_quoted(value: Any) -> None:
    assert is_one_line(quoted(value), 80)


def test_plain_values_are_quoted_as_python_writes_them() -> None:
    for value in (0, -2.5, "it's", b"abc", None, True, [1, 2], {"a": 1}, 2**70, float("nan")):
        assert quoted(value) == repr(value)


def errors(cls: type[EdgeDBError] = EdgeDBError) -> list[type[EdgeDBError]]:
    return [cls, *(found for below in cls.__subclasses__() for found in errors(below))]


@pytest.mark.parametrize("cls", errors(), ids=lambda cls: cls.__name__)
@given(before=TEXTS, quoted_text=LONG)
def test_every_error_is_one_line(cls: type[EdgeDBError], before: str, quoted_text: str) -> None:
    text = f"{before}: {quoted_text}; fetch it again"
    if "status" in signature(cls).parameters:  # nobody passes on a server's refusal
        assert is_one_line(str(cls(400, text)))
        return
    error = cls(text)
    assert is_one_line(str(error))
    assert str(error).endswith("; fetch it again"), "what to do is never cut off"
    assert str(type(error)(f"/a/path: {error}")).startswith("/a/path: ")


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FormatError("x\ny")))
    assert type(error) is FormatError and str(error) == r"x\ny"
