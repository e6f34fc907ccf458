"""Wrapping: between words, at any width, however the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from edgedb.chat.wrapping import WordWrapper


def wrap(text: str, width: int, piece: int = 1000) -> str:
    wrapper = WordWrapper(lambda: width)
    pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
    return "".join(map(wrapper.push, pieces)) + wrapper.finish()


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("the quick brown fox", 10, "the quick\nbrown fox"),
        ("exactly ten chars", 11, "exactly ten\nchars"),
        ("a  b   c", 10, "a  b   c"),
        ("a b\n\nc d\n", 10, "a b\n\nc d\n"),
        ("  indented list item", 12, "  indented\nlist item"),
        ("trailing   \nnext", 20, "trailing\nnext"),
        ("see https://example.org/a/long/address now", 12, None),
        ("日本語の文章です。", 16, "日本語の文章で\nす。"),
        ("12345678日本語", 10, "12345678日\n本語"),
        ("言葉「引用」", 6, "言葉\n「引\n用」"),
        ("```\nx = 1 + 2 + 3 + 4\n```\none two", 6, "```\nx = 1 + 2 + 3 + 4\n```\none\ntwo"),
        ("~~~py\na b c d\n```\ne f g h\n~~~\na b c d", 5, None),
        ("e\u0301" * 4 + " " + "e\u0301" * 4, 4, "e\u0301" * 4 + "\n" + "e\u0301" * 4),
    ],
)
def test_examples(text: str, width: int, expected: str | None) -> None:
    if expected is None:
        expected = {
            "s": "see\nhttps://example.org/a/long/address\nnow",
            "~": "~~~py\na b c d\n```\ne f g h\n~~~\na b c\nd",
        }[text[0]]
    for piece in (1, 2, 3, 1000):
        assert wrap(text, width, piece) == expected


@given(
    text=st.text(st.sampled_from("ab -\n日。🙂é"), max_size=200),
    width=st.integers(4, 30),
    piece=st.integers(1, 20),
)
def test_any_text(text: str, width: int, piece: int) -> None:
    wrapped = wrap(text, width, piece)
    assert wrapped == wrap(text, width), "the pieces do not matter"
    assert wrapped.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
    for line in wrapped.split("\n"):
        too_wide = wcswidth(line) > width
        assert not too_wide or " " not in line.strip(), "only a word alone may be wider"


def test_words_appear_when_they_are_complete() -> None:
    wrapper = WordWrapper(lambda: 20)
    assert wrapper.push("Hello wor") == "Hello"
    assert wrapper.push("ld again") == " world"
    assert wrapper.finish() == " again"


def test_a_word_wider_than_the_line_is_not_held_back() -> None:
    wrapper = WordWrapper(lambda: 10)
    shown = "".join(wrapper.push("x") for _ in range(50))
    assert len(shown) == 50
    assert wrapper.push(" and") + wrapper.finish() == "\nand"


def test_the_window_may_change() -> None:
    width = 20
    wrapper = WordWrapper(lambda: width)
    assert wrapper.push("one two three four ") == "one two three four"
    width = 10  # the terminal now shows "one two th" and "ree four"
    assert wrapper.push("five six ") == "\nfive six"
    width = 30
    assert wrapper.push("seven ") == " seven"
