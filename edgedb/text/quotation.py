"""Text that knows which of its characters a template wrote and which it quotes from a message.

A control token is one only where the template wrote it: ``<|im_end|>`` in a question, a document or
a tool's output is text about a token. Looking for such spellings in messages before rendering is
not enough: a template may put them together from parts, change case, replace, or cut off a sign
that was set beside them. Nor may anything be inserted: templates look into what they are given
(``'</think>' in content``). So a message's strings stay as they are, character for character, and
carry the source of each character along: ``Quoted`` is a ``str`` whose operations do that.

Templates run in a sandbox (``bounded_template.py``) in which every operator, method, filter and
call passes one of few places. There, whatever an operation makes of quoted text without saying
which characters are whose counts as quoted in whole. What is not known to be the template's own is
not trusted; an operation that this file does not know can cost a template its control tokens, but
never give them away.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, SupportsIndex, cast

# Sources of a character, in the order of trust; mixed text counts as the highest in it.
TEMPLATE, MODEL, OTHERS = 0, 1, 2

_HOLDERS: tuple[Any, ...] = (
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_QUOTED_OR_NOT = bytes([0] + [1] * 255)  # a table for bytes.translate
# Roles are names that the caller chose, of which templates make tokens: <|user|>.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A pattern of % in which every value stands for itself: no width, no precision.
_PLAIN_PERCENT = re.compile(r"(?:[^%]|%%|%(?:\(\w+\))?[sd])*")


class Quoted(str):
    """A ``str`` with the source of each character. Operations of ``str`` that are not listed here
    give a plain ``str``; callers must give those to ``derived``."""

    __slots__ = ("_sources",)
    _sources: bytes

    def __new__(cls, text: str, sources: bytes | int = OTHERS) -> Quoted:
        """``sources``: one for each character, or the same for all."""
        self = super().__new__(cls, str.__str__(text))
        self._sources = bytes([sources]) * len(self) if isinstance(sources, int) else sources
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Quoted:
        if not isinstance(other, str):
            return NotImplemented
        return Quoted(str.__add__(self, other), sources(self) + sources(other))

    def __radd__(self, other: str) -> Quoted:
        return Quoted(str.__add__(other, self), sources(other) + sources(self))

    def __mul__(self, times: SupportsIndex) -> Quoted:
        return type(self)(str.__mul__(self, times), self._sources * times.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return percent(self, values)

    def __getitem__(self, key: SupportsIndex | slice) -> Quoted:
        if isinstance(key, slice):
            return type(self)(str.__getitem__(self, key), self._sources[key])
        return type(self)(str.__getitem__(self, key), self._sources[key.__index__()])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def join(self, texts: Iterable[str]) -> str:
        parts: list[str] = []
        for text in texts:
            parts += (self, text)
        return joined(parts[1:])

    def strip(self, characters: str | None = None) -> Quoted:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> Quoted:
        return self[len(self) - len(str.lstrip(self, characters)) :]

    def rstrip(self, characters: str | None = None) -> Quoted:
        return self[: len(str.rstrip(self, characters))]

    def removeprefix(self, prefix: str) -> Quoted:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> Quoted:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if old:
            return Quoted(new, sources(new)).join(self._cut(str.split(self, old, count), len(old)))
        times = len(self) + 1 if count.__index__() < 0 else min(count.__index__(), len(self) + 1)
        parts: list[str] = [part for c in self[: max(times - 1, 0)] for part in (new, c)]
        return joined([*parts, *([new] if times else []), self[max(times - 1, 0) :]])

    def split(self, separator: str | None = None, limit: SupportsIndex = -1) -> list[Any]:
        parts = str.split(self, separator, limit)
        return self._found(parts) if separator is None else self._cut(parts, len(separator))

    def rsplit(self, separator: str | None = None, limit: SupportsIndex = -1) -> list[Any]:
        parts = str.rsplit(self, separator, limit)
        if separator is not None:
            return self._cut(parts, len(separator))
        return [part[::-1] for part in self[::-1]._found([p[::-1] for p in parts[::-1]])][::-1]

    def splitlines(self, keepends: bool = False) -> list[Any]:
        lines = self._cut(str.splitlines(self, keepends=True), 0)
        ends = str.splitlines(self)
        return lines if keepends else [line[: len(e)] for line, e in zip(lines, ends, strict=True)]

    def partition(self, separator: str) -> tuple[Any, Any, Any]:
        return cast("tuple[Any, Any, Any]", tuple(self._cut(str.partition(self, separator), 0)))

    def rpartition(self, separator: str) -> tuple[Any, Any, Any]:
        return cast("tuple[Any, Any, Any]", tuple(self._cut(str.rpartition(self, separator), 0)))

    def upper(self) -> Quoted:
        return self._respelled(str.upper(self))

    def lower(self) -> Quoted:
        return self._respelled(str.lower(self))

    def casefold(self) -> Quoted:
        return self._respelled(str.casefold(self))

    def title(self) -> Quoted:
        return self._respelled(str.title(self))

    def capitalize(self) -> Quoted:
        return self._respelled(str.capitalize(self))

    def swapcase(self) -> Quoted:
        return self._respelled(str.swapcase(self))

    def _cut(self, parts: Iterable[str], between: int) -> list[Quoted]:
        """``parts`` of this text, which follow each other ``between`` characters apart."""
        out, at = [], 0
        for part in parts:
            out.append(self[at : at + len(part)])
            at += len(part) + between
        return out

    def _found(self, parts: Iterable[str]) -> list[Quoted]:
        """``parts`` of this text in their order, with white space between them."""
        out, at = [], 0
        for part in parts:
            at = self.index(part, at)
            out.append(self[at : at + len(part)])
            at += len(part)
        return out

    def _respelled(self, text: str) -> Quoted:
        """``text``: this one in another case. No character becomes less than one."""
        same = len(text) == len(self)
        return type(self)(text, self._sources if same else source_of(self))


class QuotedMarkup(Quoted):
    """Quoted text that needs no escaping: as Jinja's ``Markup``, it escapes what is put into it."""

    __slots__ = ()

    def __html__(self) -> str:
        return self

    def __str__(self) -> str:
        return Quoted(self, self._sources)

    def __add__(self, other: str) -> Quoted:
        return (
            marked_up(super().__add__(escaped(other))) if isinstance(other, str) else NotImplemented
        )

    def __radd__(self, other: str) -> Quoted:
        return escaped(other) + self

    def __iter__(self) -> Iterator[str]:
        return iter(str(self))

    def join(self, texts: Iterable[str]) -> str:
        return marked_up(super().join(map(escaped, texts)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        return marked_up(super().replace(old, escaped(new), count))


_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"}


def marked_up(text: str) -> QuotedMarkup:
    """``text`` as it is, as markup."""
    return QuotedMarkup(text, sources(text))


def escaped(value: Any) -> QuotedMarkup:
    """Markup that shows ``value``: as it is if it is markup already."""
    text = text_of(value)
    if hasattr(text, "__html__"):
        return marked_up(text)
    spelled = [_HTML.get(c, c) for c in str.__iter__(text)]
    of_each = zip(spelled, sources(text), strict=True)
    return QuotedMarkup("".join(spelled), b"".join(bytes([s]) * len(part) for part, s in of_each))


def tracked(text: str) -> Quoted:
    """``text`` with operations that say which characters of their result are whose."""
    if isinstance(text, Quoted):
        return text
    return marked_up(text) if hasattr(text, "__html__") else Quoted(text, sources(text))


# Operations of a text that say themselves which characters of the result are whose.
TRACKED_METHODS = frozenset(name for name in vars(Quoted) if not name.startswith("_"))


def quote(value: Any, source: int = OTHERS) -> Any:
    """A copy of JSON-like data in which every text, keys too, is quoted from ``source``."""
    if isinstance(value, str):
        return (QuotedMarkup if hasattr(value, "__html__") else Quoted)(value, source)
    if isinstance(value, Mapping):
        return {quote(key, source): quote(item, source) for key, item in value.items()}
    if isinstance(value, _HOLDERS):
        items = [quote(item, source) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def quote_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message for a template: its role if that is a name, and everything else quoted."""
    role = message.get("role")
    quoted: dict[str, Any] = quote(message, MODEL if role == "assistant" else OTHERS)
    if isinstance(role, str) and _NAME.fullmatch(role):
        quoted["role"] = str.__str__(role)
    return quoted


def sources(text: str) -> bytes:
    """The source of each character: ``TEMPLATE`` for a text that quotes nothing."""
    return text._sources if isinstance(text, Quoted) else bytes(len(text))


def source_of(*values: Any) -> int:
    """The least trusted source of any text in the trees under ``values``."""
    source = TEMPLATE
    waiting: list[Any] = list(values)
    while waiting and source < OTHERS:
        value = waiting.pop()
        if isinstance(value, Quoted):
            source = max(source, max(value._sources, default=TEMPLATE))
        elif isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, _HOLDERS):
            waiting.extend(value)
        elif isinstance(value, MethodType):  # whose text shows that of its object
            waiting.append(value.__self__)
        elif isinstance(value, bytes):  # which do not know
            source = OTHERS
    return source


def derived(result: Any, *given: Any) -> Any:
    """``result`` of an operation on ``given``, its texts quoted in whole if any of those is."""
    source = source_of(*given)
    return quote(result, source) if source and isinstance(result, (str, *_HOLDERS)) else result


def text_of(value: Any) -> str:
    """``str(value)``, quoted if ``value`` holds a text that is."""
    return value if isinstance(value, str) else cast(str, derived(str(value), value))


def joined(texts: Iterable[str]) -> str:
    """``"".join(texts)``."""
    parts = list(texts)
    text = "".join(parts)
    if not any(isinstance(part, Quoted) for part in parts):
        return text
    return Quoted(text, b"".join(map(sources, parts)))


class Placeholders:
    """Stand for texts while something puts them together that does not track sources."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)  # not to be guessed: a message may hold anything
        self._texts: list[str] = []

    def hold(self, text: str) -> str:
        """What to write for ``text``."""
        self._texts.append(text)
        return f"{self._mark}{len(self._texts) - 1};"

    def fill(self, text: str) -> str:
        """``text`` with what was held in its place."""
        parts = re.split(f"{self._mark}([0-9]+);", text)
        parts[1::2] = [self._texts[int(number)] for number in parts[1::2]]
        return joined(parts)


def percent(pattern: str, values: Any) -> str:
    """``pattern % values``."""
    plain = str.__str__(pattern) if isinstance(pattern, Quoted) else pattern
    if isinstance(pattern, QuotedMarkup):
        from markupsafe import Markup

        plain = Markup(plain)
    # Not of markup, which changes what it takes in.
    simple = type(plain) is str and _PLAIN_PERCENT.fullmatch(plain)
    if not simple or source_of(pattern) or not source_of(values):
        return cast(str, derived(plain % values, pattern, values))
    held = Placeholders()

    def stand_in(value: Any) -> Any:
        return value if isinstance(value, (int, float)) else held.hold(text_of(value))

    if isinstance(values, tuple):
        values = tuple(map(stand_in, values))
    elif isinstance(values, dict):
        values = {key: stand_in(value) for key, value in values.items()}
    else:
        values = stand_in(values)
    return held.fill(plain % values)


def own_matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of ``pattern`` that lie in the template's own text, from left to right."""
    own = sources(text).translate(_QUOTED_OR_NOT)
    end = 0
    while (start := own.find(0, end)) >= 0:
        end = own.find(1, start)
        end = len(own) if end < 0 else end
        yield from pattern.finditer(text, start, end)


def any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches one of ``spellings``, the longest first: one may begin like another."""
    longest_first = sorted(filter(None, spellings), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
