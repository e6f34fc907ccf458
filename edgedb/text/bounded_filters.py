"""Filters of Jinja that need more than the rules of ``bounded_template.py`` to be bounded.

Each takes and gives what Jinja's own does; what it would take too long for is refused.
"""

from __future__ import annotations

import pprint
import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn

from jinja2.filters import FILTERS
from jinja2.sandbox import SecurityError

from .bounded_template import bounded_filter
from .bounds import MAX_SIZE, budget, too_large

_MAX_COPIED = 1 << 31  # characters that a quadratic filter moves in memory: some 0.3 s
_MAX_WORDS = 1 << 18  # characters that are taken apart into words, fifty bytes each and more
_RUN = re.compile(r"\s+|\S+")


class _Sheet:
    """A stream that ends a text as soon as it is too long: its size is known only as it comes."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._size = 0

    def write(self, piece: str) -> None:
        self._size += len(piece)
        if self._size > MAX_SIZE:
            raise too_large()
        budget.get().spend(len(piece))
        self.pieces.append(piece)


def _pprint(value: Any) -> str:
    sheet = _Sheet()
    pprint.pprint(value, stream=sheet)  # type: ignore[arg-type]
    return "".join(sheet.pieces).removesuffix("\n")


def _random(*_: Any, **__: Any) -> NoReturn:
    raise SecurityError("the filter random; the same messages must always give the same text")


def _refuse_copies(name: str, n_chars: int) -> None:
    if n_chars > _MAX_COPIED:
        raise SecurityError(f"{name} of so long a text")


def _refuse_words(name: str, text: str, times: int) -> None:
    """Refuse a filter that copies what is left of a word ``1 / times`` of its length times."""
    if len(text) > _MAX_WORDS:
        raise SecurityError(f"{name} of more than {_MAX_WORDS} characters")
    longest = max((run.end() - run.start() for run in _RUN.finditer(text)), default=0)
    _refuse_copies(name, longest * len(text) // times)


def _check_wordwrap(text: Any, width: int = 79, *_: Any, **__: Any) -> None:
    _refuse_words("wordwrap", str(text), max(1, width))


def _check_striptags(value: Any) -> None:
    text = str(value)
    _refuse_copies("striptags", text.count("<") * len(text))


def _check_urlize(text: Any, *_: Any, **__: Any) -> None:
    _refuse_words("urlize", str(text), 4)


def _checking(name: str, check: Callable[..., None]) -> Callable[..., Any]:
    function = FILTERS[name]
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        check(*args[first:], **kwargs)
        return function(*args, **kwargs)

    return checking


def filters() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Names and functions, to be added to an environment's."""
    yield "pprint", bounded_filter("pprint", _pprint)
    yield "random", _random
    for name, check in (
        ("wordwrap", _check_wordwrap),
        ("striptags", _check_striptags),
        ("urlize", _check_urlize),
    ):
        yield name, bounded_filter(name, _checking(name, check))
