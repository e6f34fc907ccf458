"""Regular expressions of a ``tokenizer.json`` that can only take time in proportion to the text.

They are run by Oniguruma, which backtracks and has no deadline. A match is cheap if what an
unbounded repetition has read is never given back. So ``check_regex`` reads the expression and asks
that, in each branch, only what may be empty follows an unbounded repetition:
``\\p{L}+[\\r\\n]*`` passes, ``.*x`` does not. Bounded repetitions and alternatives multiply the
ways in which a branch can fail, and that product has a limit.

``_IDIOMS`` are the exceptions that published tokenizers need: they give back what they have read,
but only within one run of spaces, digits or letters.
"""

from __future__ import annotations

import re

from ..errors import UnsupportedModelError

MAX_CHARS = 8192
MAX_WAYS = 256  # of one branch to fail at one place
MAX_STEPS = 8192  # characters of one match, without unbounded repetitions
MAX_NESTING = 8

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NO_HAN = r"&&[^\p{Han}]"
_IDIOMS = sorted(
    (
        r"\s*[\r\n]+",
        r"\s*[\r\n]",
        "\\s*[\r\n]+",
        "\\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s++(?!\S)",
        r"\s+$",
        r"\s++$",
        rf"[{_UPPER}]*[{_LOWER}]+",
        rf"[{_UPPER}{_NO_HAN}]*[{_LOWER}{_NO_HAN}]+",
        r"(?=(?:\d{3})*\b)",
        r"(?=(\d{3})+(?!\d))",
        r"(?=(?:\d{3})+(?!\d))",
        r"(?=(\p{N}{3})+(?!\p{N}))",
        r"(?=(?:\p{N}{3})+(?!\p{N}))",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "<sentinel:[0-9]+>",
    ),
    key=len,
    reverse=True,  # the longest first: one may begin like another
)
_ESCAPE = re.compile(
    r"\\(?:[sSdDwWhHrntvfae]|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}"
    r"|[pP]\{\^?[A-Za-z_ -]{1,40}\}|[^A-Za-z0-9])",
    re.DOTALL,
)
_ANCHOR = re.compile(r"\\[bBAzZ]|[\^$]")
_GROUP = re.compile(r"\((?:\?(?:i?:|>|[=!]))?")
_QUANTIFIER = re.compile(r"([*+?])([+?]?)|\{(\d{1,5})(,?)(\d{0,5})\}|\{,(\d{1,5})\}")
_STACKED = re.compile(r"[*+?{]")
_UNBOUNDED = -1


def check_regex(pattern: str, where: str) -> None:
    """Raise ``UnsupportedModelError``, which names ``where``, unless ``pattern`` is bounded.

    Takes the syntax that tokenizers need: classes, groups, look-ahead, repetitions. What it does
    not know (back-references, look-behind, recursion, options) it refuses.
    """
    try:
        if len(pattern) > MAX_CHARS:
            raise _Refused(f"more than {MAX_CHARS} characters")
        _Reader(pattern).read()
    except _Refused as reason:
        shown = pattern if len(pattern) <= 60 else pattern[:60] + "..."
        raise UnsupportedModelError(
            f"{where}: the regular expression {shown!r} is not accepted: {reason}"
        ) from None


class _Refused(Exception):
    pass


class _Part:
    """What is known of a stretch of the expression.

    nullable: it can match nothing; ends_open: it ends with an unbounded repetition, or such a one
    is followed only by what may be empty; ways: choices that may be gone through again if what
    follows fails; steps: characters that its bounded parts can read.
    """

    def __init__(self, nullable: bool, open_: bool, ways: int, steps: int) -> None:
        self.nullable, self.ends_open, self.ways, self.steps = nullable, open_, ways, steps


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def read(self) -> None:
        if self.pattern.startswith("(?i)"):
            self.at = 4
        self._alternatives(0)
        if self.at < len(self.pattern):
            raise _Refused(f"unexpected {self.pattern[self.at]!r}")

    def _alternatives(self, depth: int) -> _Part:
        branches = [self._branch(depth)]
        while self._takes("|"):
            branches.append(self._branch(depth))
        return _limited(
            _Part(
                nullable=any(branch.nullable for branch in branches),
                open_=any(branch.ends_open for branch in branches),
                ways=sum(branch.ways for branch in branches),
                steps=max(branch.steps for branch in branches),
            )
        )

    def _branch(self, depth: int) -> _Part:
        whole = _Part(nullable=True, open_=False, ways=1, steps=0)
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            whole = _followed(whole, self._repeated(depth))
        return whole

    def _repeated(self, depth: int) -> _Part:
        idiom = self._idiom()
        if idiom:
            return idiom
        looks, atom = self._atom(depth)
        found = _QUANTIFIER.match(self.pattern, self.at)
        if not found:
            if self.pattern[self.at : self.at + 1] in tuple("*+?{"):
                raise _Refused("a brace that is no repetition; write \\{")
            return atom
        if looks:
            raise _Refused("a repeated assertion")
        self.at = found.end()
        sign, mode, low, comma, high, at_most = found.groups()
        if _STACKED.match(self.pattern, self.at):
            raise _Refused("a repetition of a repetition")
        if sign:
            least, most = (sign == "+"), (1 if sign == "?" else _UNBOUNDED)
            if mode == "?" and most == _UNBOUNDED:
                raise _Refused("a lazy repetition without a bound")
            return _times(atom, int(least), most, possessive=mode == "+")
        if at_most is not None:
            return _times(atom, 0, int(at_most))
        most = int(high) if high else (_UNBOUNDED if comma else int(low))
        return _times(atom, int(low), most)

    def _idiom(self) -> _Part | None:
        for idiom in _IDIOMS:
            end = self.at + len(idiom)
            if self.pattern.startswith(idiom, self.at) and not _STACKED.match(self.pattern, end):
                self.at = end
                return _Part(nullable=False, open_=not idiom.startswith("("), ways=4, steps=4)
        return None

    def _atom(self, depth: int) -> tuple[bool, _Part]:
        """Whether it only looks (and reads nothing), and what it is."""
        character = self.pattern[self.at]
        assertion = _Part(nullable=False, open_=False, ways=1, steps=0)
        single = _Part(nullable=False, open_=False, ways=1, steps=1)
        if character == "(":
            return self._group(depth)
        anchor = _ANCHOR.match(self.pattern, self.at)
        if anchor:
            self.at = anchor.end()
            return True, assertion
        if character == "[":
            self._class(depth)
        elif character == "\\":
            self._escape()
        elif character in "*+?{":
            raise _Refused("a repetition of nothing")
        else:
            self.at += 1
        return False, single

    def _group(self, depth: int) -> tuple[bool, _Part]:
        if depth >= MAX_NESTING:
            raise _Refused(f"more than {MAX_NESTING} groups inside each other")
        opening = _GROUP.match(self.pattern, self.at)
        assert opening
        self.at = opening.end()
        if self.pattern[self.at : self.at + 1] == "?":
            raise _Refused("a group that is neither (?:, (?i:, (?>, (?= nor (?!")
        looks = opening[0] in ("(?=", "(?!")
        inner = self._alternatives(depth + 1)
        if not self._takes(")"):
            raise _Refused("a group without an end")
        if not looks:
            return False, inner
        if inner.ends_open:
            raise _Refused("an unbounded repetition in a look-ahead")
        return True, _Part(nullable=False, open_=False, ways=inner.ways, steps=inner.steps)

    def _class(self, depth: int) -> None:
        """Skip a character class, which may hold others and ``&&``."""
        if depth >= MAX_NESTING:
            raise _Refused(f"more than {MAX_NESTING} classes inside each other")
        self.at += 1
        self._takes("^")
        if self.pattern[self.at : self.at + 1] == "]":
            raise _Refused("a class that is empty or begins with ]; write \\]")
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            if character == "]":
                self.at += 1
                return
            if character == "[":
                self._class(depth + 1)
            elif character == "\\":
                self._escape()
            else:
                self.at += 1
        raise _Refused("a class without an end")

    def _escape(self) -> None:
        found = _ESCAPE.match(self.pattern, self.at)
        if not found:
            raise _Refused(f"the escape {self.pattern[self.at : self.at + 2]!r}")
        self.at = found.end()

    def _takes(self, character: str) -> bool:
        taken = self.pattern.startswith(character, self.at)
        self.at += taken
        return taken


def _limited(part: _Part) -> _Part:
    if part.ways > MAX_WAYS:
        raise _Refused(f"more than {MAX_WAYS} ways to fail at one place")
    if part.steps > MAX_STEPS:
        raise _Refused(f"a match of more than {MAX_STEPS} characters")
    return part


def _followed(first: _Part, second: _Part) -> _Part:
    if first.ends_open and not second.nullable:
        raise _Refused("something must follow an unbounded repetition")
    return _limited(
        _Part(
            nullable=first.nullable and second.nullable,
            open_=first.ends_open or second.ends_open,
            ways=first.ways * second.ways,
            steps=first.steps + second.steps,
        )
    )


def _times(part: _Part, least: int, most: int, *, possessive: bool = False) -> _Part:
    """``part`` from ``least`` to ``most`` times."""
    bounded = max(least, most, 1)
    if part.ends_open and least > 1 and not part.nullable:
        raise _Refused("something must follow an unbounded repetition")
    # Each round may end in `part.ways` ways, and the repetition after any of its rounds.
    rounds = 1 if most == _UNBOUNDED else bounded
    ways = part.ways if part.ways == 1 else part.ways ** min(rounds, 16)
    stops = 1 if possessive or most == _UNBOUNDED else most - least + 1
    if stops < 1:
        raise _Refused("a repetition whose bounds are the wrong way round")
    return _limited(
        _Part(
            nullable=least == 0 or part.nullable,
            open_=most == _UNBOUNDED or part.ends_open,
            ways=ways * stops,
            steps=part.steps * bounded,
        )
    )
