"""What was measured: a file of JSON lines that one process adds to."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..curves import mend_log, read_log

RECORDS = Path("bench/results/research.jsonl")

Record = dict[str, Any]


class Results:
    """Records of a file, each with a ``key`` of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        mend_log(path)  # of a run that was killed

    def read(self) -> list[Record]:
        """All of them, oldest first."""
        return read_log(self.path) if self.path.exists() else []

    def __contains__(self, key: str) -> bool:
        return any(record["key"] == key for record in self.read())

    def __getitem__(self, key: str) -> Record:
        """Raises ``KeyError``."""
        for record in self.read():
            if record["key"] == key:
                return record
        raise KeyError(key)

    def add(self, record: Record) -> None:
        """Write one, whole, at the end."""
        with self.path.open("a") as file:
            file.write(json.dumps(rounded(record)) + "\n")


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats to so many significant digits, however deep; what is no number becomes ``None``."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part, digits) for part in value]
    return value


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean, and behind ± the standard deviation of a sample, in as many decimals; of one value no
    spread is known."""
    found = list(values)
    if not found:
        return ""
    mean = statistics.fmean(found)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(mean)))) if mean else digits
    text = f"{mean:.{decimals}f}"
    if len(found) < 2:
        return text
    return f"{text} ± {statistics.stdev(found):.{decimals}f}"


def by(records: Iterable[Record], *fields: str) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    """Records in groups of equal fields, in the order in which the first of each came."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(field) for field in fields), []).append(record)
    yield from groups.items()
