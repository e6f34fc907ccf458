"""Medians and ratios of a journal's records. Ratios are taken inside rounds, then their median."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import ONE_PAIR, PAGES


@dataclass(frozen=True)
class Spread:
    """Some figures of one thing, one from each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Key:
    """One series: what a contestant reached in one test at one number of threads (0: no matter)."""

    name: str
    test: str
    threads: int


class Results:
    """The records of one model."""

    def __init__(self, model: str, records: Iterable[Mapping[str, Any]]) -> None:
        self.model = model
        self.described: dict[str, dict[str, Any]] = {}
        self._values: dict[Key, dict[int, float]] = {}
        self._limits: dict[str, dict[Key, dict[int, float]]] = {pages: {} for pages in PAGES}
        for record in records:
            if record["model"] != model:
                continue
            if "round" not in record:
                self.described[record["name"]] = dict(record)
                continue
            key = Key(record["name"], record["test"], record["threads"])
            self._values.setdefault(key, {})[record["round"]] = record["value"]
            for pages, name in PAGES.items():
                if name in record:
                    found = self._limits[pages].setdefault(key, {})
                    found[record["round"]] = record[name]

    @property
    def keys(self) -> list[Key]:
        """Every series that was measured."""
        return list(self._values)

    @property
    def is_race(self) -> bool:
        """Whether there is decoding to compare."""
        return any(key.test == "decode" for key in self._values)

    @property
    def names(self) -> list[str]:
        """Contestants that were measured, in the order of their start."""
        measured = {key.name for key in self._values}
        return [name for name in self.described if name in measured]

    @property
    def rounds(self) -> int:
        return max((len(found) for found in self._values.values()), default=0)

    @property
    def threads(self) -> list[int]:
        return sorted({key.threads for key in self._values})

    def value(self, key: Key) -> Spread | None:
        """Tokens a second, or what the test is about; ``None`` where it was not measured."""
        return _spread(self._values.get(key, {}).values())

    def gigabytes(self, key: Key) -> Spread | None:
        """GB of weights read a second."""
        size = self.described.get(key.name, {}).get("bytes_per_token", 0)
        return _spread(size * rate / 1e9 for rate in self._values.get(key, {}).values())

    def limit(self, threads: int, pages: str = "file") -> Spread | None:
        """GB/s of plain reading around the decoding of one pair."""
        found = self._limits[pages].get(Key(ONE_PAIR, "decode", threads), {})
        return _spread(limit / 1e9 for limit in found.values())

    def share_of_limit(self, key: Key, pages: str = "file") -> Spread | None:
        """Weights read a second over what plain reading gave just before and after."""
        size = self.described.get(key.name, {}).get("bytes_per_token", 0)
        rates, limits = self._values.get(key, {}), self._limits[pages].get(key, {})
        return _spread(size * rates[number] / limits[number] for number in limits)

    def ratio(self, ours: Key, theirs: Key) -> Spread | None:
        """``ours / theirs`` in the rounds that have both."""
        a, b = self._values.get(ours, {}), self._values.get(theirs, {})
        return _spread(a[number] / b[number] for number in a if number in b)

    def ceiling(self, ours: Key, theirs: Key) -> Spread | None:
        """What ``ratio`` would be if ours read its weights as fast as plain reading did."""
        size = self.described.get(ours.name, {}).get("bytes_per_token", 0)
        limits, b = self._limits["file"].get(ours, {}), self._values.get(theirs, {})
        return _spread(limits[number] / size / b[number] for number in limits if number in b)

    def best(self, names: Sequence[str], test: str, threads: Sequence[int]) -> Key | None:
        """The series with the highest median."""
        keys = [Key(name, test, count) for name in names for count in threads]
        measured = [key for key in keys if key in self._values]
        return max(
            measured, key=lambda k: statistics.median(self._values[k].values()), default=None
        )

    def ratio_of_best(
        self, ours: Sequence[str], theirs: Sequence[str], test: str, threads: Sequence[int]
    ) -> Spread | None:
        """Our best series over their best one."""
        a, b = self.best(ours, test, threads), self.best(theirs, test, threads)
        return self.ratio(a, b) if a and b else None


def _spread(values: Iterable[float]) -> Spread | None:
    found = tuple(values)
    return Spread(found) if found else None
