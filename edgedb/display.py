"""Text of others, made fit to be shown: it steers no terminal, forges no line and has an end.

What stands in a model file, a checkpoint, a template, a file's name or an argument was written by
somebody else. It reaches a reader in two ways: as lines of text, like an answer, through
``printable``; and inside a line of ours, like an error or a row of a table, through ``one_line`` or
``quoted``.
"""

from __future__ import annotations

import reprlib
import unicodedata

LINE_CHARS = 600  # of a message: what is wrong and what to do fit beside a long path
NAME_CHARS = 80  # of one name or value inside a message

# Moving the cursor, colours, the clipboard (C0, DEL, C1), and letters shown in another order than
# they are stored (embeddings, overrides and isolates of the bidirectional algorithm).
_STEERING = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_REMOVED: dict[int, str | None] = {c: None for c in _STEERING if chr(c) not in "\n\t"}
_REMOVED |= {0x2028: "\n", 0x2029: "\n"}  # the separators of lines and paragraphs

# Control and format characters, surrogates, separators of lines and paragraphs. The joiners are
# format characters too, but Persian words and emoji are spelled with them.
_UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """``text`` without characters that steer a terminal; its lines stay lines.

    Works character by character: a text may come in pieces.
    """
    return text.translate(_REMOVED)


def one_line(text: str, limit: int = LINE_CHARS) -> str:
    """``text`` on one line of at most ``limit`` characters.

    Line breaks and everything that is not seen become escapes (``\\n``, ``\\x1b``, ``\\u202e``);
    of a longer text the middle is left out.
    """
    shown = _shorten(text, limit)  # first, so that the cost is bounded too
    if shown.isprintable():
        return shown
    return _shorten("".join(map(_escape, shown)), limit)


def quoted(value: object, limit: int = NAME_CHARS) -> str:
    """``repr`` of a value for a message: one line, at most ``limit`` characters, whatever it is."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = form.maxlong = limit
    try:
        text = form.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return one_line(text, limit)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 3
    return f"{text[: limit - 3 - tail]}...{text[len(text) - tail :]}"


def _escape(char: str) -> str:
    if char in _JOINERS or unicodedata.category(char) not in _UNSHOWN:
        return char
    return char.encode("unicode_escape").decode("ascii")
