"""JSON of a file, read as if it were hostile: bounded work, no surprises in what comes out."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from .display import quoted
from .errors import FormatError

MAX_NESTING = 64  # of what a file says; ours needs 5
# As many plain values, or a quarter as many lists and objects, which Python's collector of garbage
# visits again and again. Without it, 16 MB of JSON take 10 seconds.
MAX_VALUES = 1 << 20


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON without duplicate keys, NaN or absurd nesting, else ``FormatError`` about ``what``.

    What it returns can be walked, printed and written as JSON by recursive code.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FormatError(f"{what}: {twice[:80]!r} is there twice")
        return result

    def refuse(constant: str) -> float:
        raise FormatError(f"{what}: {constant} is not a number")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(quoted(digits))

    refuse_many_values(text, what)
    try:
        document = json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{what}: not valid JSON ({reason[:120]})") from None
    if nested_deeper(document, MAX_NESTING):
        raise FormatError(f"{what}: nested more than {MAX_NESTING} deep")
    return document


def refuse_many_values(text: str | bytes, what: str, limit: int = MAX_VALUES) -> None:
    """Raise ``FormatError`` about ``what`` if reading it as JSON could take seconds.

    Counts commas and brackets wherever they stand, in strings too.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if raw.count(b",") + 4 * (raw.count(b"[") + raw.count(b"{")) > limit:
        raise FormatError(f"{what}: more than {limit} values")


def nested_deeper(document: Any, limit: int) -> bool:
    """Whether lists and dictionaries stand in each other more than ``limit`` deep."""
    level = [document]
    for _ in range(limit + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list, tuple)):
                below += value.values() if isinstance(value, dict) else value
        if not (level := below):
            return False
    return True
