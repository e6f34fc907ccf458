"""What bounds a rendering: limits, a budget, the size of values, and what an operation may make.

``bounded_template.py`` has the rules and asks here at every operation.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2.sandbox import SecurityError

from ..errors import TemplateError
from .permitted import CODEC_ERRORS, ENCODINGS

MAX_SIZE = 1 << 21  # characters of a value; in a collection each value counts _ITEM more
MAX_WORK = 1 << 24
MAX_NUMBER = 1 << 16
MAX_LOOP_STEPS = 1_000_000
MAX_BYTES = 1 << 26
MAX_SECONDS = 1.0  # of the processor, to compile and render; real templates take milliseconds
# Compiling takes up to 35 microseconds for each. The longest of 74 published templates has 3,800.
MAX_TEMPLATE_TOKENS = 12_000
_ITEM = 16
_ITEM_BYTES = 80  # a pointer and a short string
_INT_BITS = 64

COLLECTIONS: tuple[type, ...] = (
    list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items())
)  # fmt: skip
_HOLDERS: tuple[Any, ...] = (dict, *COLLECTIONS)
DATA = (str, bytes, int, float, *_HOLDERS)
_DIGITS = re.compile(r"\d+")


class Budget:
    """What is left to one rendering; make one with :meth:`start` and give it to ``budget``."""

    def __init__(self, started: float) -> None:
        """``started``: since when the seconds count, by ``time.thread_time``."""
        self.steps = MAX_LOOP_STEPS
        self.bytes = MAX_BYTES
        self.started = started
        self.deadline = time.monotonic()  # when to look at the processor time

    def spend(self, n_bytes: int) -> None:
        self.bytes -= n_bytes
        if self.bytes < 0:
            raise TemplateError(f"chat template: makes more than {MAX_BYTES} bytes")
        if time.monotonic() > self.deadline:
            self._look_at_processor_time()

    def _look_at_processor_time(self) -> None:
        """The clock alone would refuse a template because the machine is busy."""
        left = MAX_SECONDS - (time.thread_time() - self.started)
        if left <= 0:
            raise TemplateError(f"chat template: takes more than {MAX_SECONDS:g} seconds")
        self.deadline = time.monotonic() + left

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateError(f"chat template: more than {MAX_LOOP_STEPS} loop steps")
        self.spend(0)


budget: ContextVar[Budget] = ContextVar("budget")


def too_large() -> SecurityError:
    return SecurityError(f"a value of more than {MAX_SIZE} characters")


def _measure(value: Any) -> tuple[int, int]:
    """Characters and values in the tree under ``value``, or ``SecurityError`` above the bounds."""
    if isinstance(value, str):
        if len(value) > MAX_SIZE:
            raise too_large()
        return len(value), 1
    n_chars = n_values = 0
    waiting: list[Any] = [value]
    while waiting:
        value = waiting.pop()
        n_values += 1
        if isinstance(value, str):
            n_chars += len(value)
        elif isinstance(value, bytes):
            n_chars += _ITEM * len(value)  # so many numbers, if it is looked into
        elif isinstance(value, int):
            if value.bit_length() > _INT_BITS:
                raise SecurityError(f"an integer of more than {_INT_BITS} bits")
        elif isinstance(value, _HOLDERS):
            if len(value) * _ITEM > MAX_SIZE:
                raise too_large()
            waiting.extend(value)
            if isinstance(value, dict):
                waiting.extend(value.values())
        if n_chars + _ITEM * (n_values + len(waiting)) > MAX_SIZE:
            raise too_large()
    return n_chars, n_values


def checked(value: Any, *, new_strings: bool = False) -> Any:
    """``value``, measured and paid for. ``new_strings``: so are the strings that it holds."""
    if value is True or value is False:
        return value
    n_chars, n_values = _measure(value)
    if isinstance(value, str):
        budget.get().spend(sys.getsizeof(value))
    else:
        budget.get().spend(_ITEM_BYTES * n_values + (4 * n_chars if new_strings else 0))
    return value


def _weight(value: Any, numbers: bool) -> int:
    if isinstance(value, int):
        if numbers and abs(value) > MAX_NUMBER:
            raise SecurityError(f"a number of more than {MAX_NUMBER} as an argument")
        return abs(value) if numbers else 20  # digits of the longest
    if isinstance(value, tuple):
        return sum(_weight(item, numbers) + 1 for item in value)
    n_chars, n_values = _measure(value)
    return n_chars if isinstance(value, str) else n_chars + _ITEM * n_values


def foresee(subject: Any, arguments: Sequence[Any], *, numbers: bool = True) -> None:
    """Refuse an operation whose result may be too large to make. ``numbers`` may be counts."""
    if not arguments:
        return
    size = _weight(subject, False) + 1
    if size * (1 + sum(_weight(argument, numbers) for argument in arguments)) > MAX_WORK:
        raise SecurityError(f"an operation that may make more than {MAX_WORK} characters")


def foresee_percent(pattern: str, arguments: Sequence[Any]) -> None:
    refuse_width(pattern, MAX_WORK)
    foresee(pattern, arguments, numbers="*" in pattern)


def refuse_codec(encoding: Any = "utf-8", errors: Any = "strict") -> None:
    for name, known in ((encoding, ENCODINGS), (errors, CODEC_ERRORS)):
        if str(name).lower().replace("_", "-") not in known:
            raise SecurityError(
                f"encode with {str(name)[:40]!r}; known are {', '.join(sorted(known))}"
            )


def refuse_power(left: Any, right: Any) -> None:
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    if max(abs(left) - 1, 0).bit_length() * right > 2 * _INT_BITS:
        raise SecurityError(f"an integer of more than {_INT_BITS} bits")


def refuse_width(pattern: str, limit: int) -> int:
    numbers = _DIGITS.findall(pattern)
    width = sum(int(number[-9:]) for number in numbers)
    if width > limit or any(len(number) > 9 for number in numbers):
        raise SecurityError("a format with too large a width")
    return width


def repeated_size(left: Any, right: Any) -> int:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(times, int):
            return len(sequence) * times
    return 0


def counted(items: Any) -> Iterator[Any]:
    """Iterate ``items`` and take one step of the rendering's budget for each."""
    for item in items:
        budget.get().step()
        yield item


def held(value: Any) -> Any:
    """The items of an iterator or range as a list, to be measured; anything else as it is."""
    lazy = not isinstance(value, DATA) and isinstance(value, (Iterator, range))
    return checked(list(counted(value))) if lazy else value
