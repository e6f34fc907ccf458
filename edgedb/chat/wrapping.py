"""Breaking a text between words while it streams in."""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import category

from wcwidth import wcwidth

_FENCES = ("```", "~~~")
_JOINER = "\u200d"
# Unicode categories of punctuation that never begins a line, and that never ends one.
_CLOSING = ("Pe", "Pf", "Po")
_OPENING = ("Ps", "Pi")
_TAB = 8


class WordWrapper:
    """Passes text on with line breaks between words, so that no line is wider than ``width()``.

    A word is held back until it is complete: what has been given out is never moved. A word wider
    than a line is left to the terminal, so that an address stays one piece when it is copied. Lines
    between code fences pass as they are. ``width`` is asked before every word: the window may
    change at any time.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._known = 0  # width at the last word
        self._column = 0  # where the cursor stands
        self._spaces = ""  # after the last word, dropped where the line breaks
        self._word = ""
        self._line = ""  # the beginning of the line of the source, to see fences
        self._fence = ""  # the fence that ends this block of code, if any
        self._passing = False  # inside a word wider than a line

    def push(self, text: str) -> str:
        """Take more text; returns what can be printed."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """The word that is still held back, now that no more comes."""
        return self._flush()

    def _take(self, char: str) -> str:
        if char == "\n":
            return self._flush() + self._new_line()
        if len(self._line) < len(_FENCES[0]) + 3:
            self._line += char
        if self._fence:
            return char
        if char in " \t":
            out = self._flush()
            self._passing = False
            self._spaces += char
            return out
        out = self._flush() if self._word and _may_break(self._word[-1], char) else ""
        self._word += char
        if self._passing or _columns(self._word) > self._width():
            out += self._flush()
            self._passing = True
        return out

    def _new_line(self) -> str:
        mark = self._line.strip()[: len(_FENCES[0])]
        if self._fence:
            if mark == self._fence:
                self._fence = ""
        elif mark in _FENCES:
            self._fence = mark
        self._line, self._column, self._spaces, self._passing = "", 0, "", False
        return "\n"

    def _flush(self) -> str:
        if not self._word:
            return ""
        width = max(1, self._width())
        if width != self._known:  # the terminal has broken the line by itself
            self._known = width
            self._column = self._column % width
        gap = self._spaces.expandtabs(_TAB)  # a tab stop within a line is not worth the trouble
        wide = _columns(self._word)
        out, start = gap, self._column + len(gap)
        if start + wide > width and self._column and not self._passing:
            out, start = "\n", 0
        out += self._word
        # The terminal breaks an overlong word, and what follows begins a line.
        overlong = self._passing or wide > width
        self._column = width if overlong else start + wide
        self._word = self._spaces = ""
        return out


def _may_break(before: str, after: str) -> bool:
    """Whether a line may break between two characters that no space separates."""
    if wcwidth(after) == 0 or before == _JOINER:
        return False
    if wcwidth(before) < 2 and wcwidth(after) < 2:
        return False
    return category(after) not in _CLOSING and category(before) not in _OPENING


def _columns(text: str) -> int:
    return sum(max(0, wcwidth(char)) for char in text)
