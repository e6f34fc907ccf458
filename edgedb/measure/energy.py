"""Energy that the processor took, by the counters that Linux shows of it (RAPL).

Two drivers have them: powercap (Intel's and AMD's processors; a zone ``package-N`` each), and hwmon
(AMD's older ``amd_energy``; an input ``EsocketN`` each). They count everything that runs there, not
one process, and a whole socket: measure on a quiet machine. Virtual machines seldom have any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..display import NAME_CHARS, one_line
from ..errors import EdgeDBError

SYS = Path("/sys")
_ROOT_ALONE = "is read by root alone: sudo, or chmod a+r"


@dataclass(frozen=True)
class Counter:
    """One socket's: a file of microjoules since some moment, which begins anew behind ``largest``
    (0: never)."""

    name: str
    file: Path
    largest: int = 0

    def read(self) -> int:
        """Microjoules. Raises ``EdgeDBError`` if the file cannot be read or holds no number."""
        return _whole_number(self.file)

    def since(self, before: int, now: int) -> int:
        """Microjoules between two readings with less than a whole round between them."""
        if now >= before:
            return now - before
        if not self.largest:
            raise EdgeDBError(f"{self.file}: went back from {before} to {now}")
        return self.largest - before + now


class Meter:
    """The counters of all sockets together."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = counters
        self._last = [counter.read() for counter in counters]

    def joules(self) -> float:
        """Since the last call, or since the meter was made. A counter goes round in some minutes of
        full load: ask more often. Raises ``EdgeDBError`` as ``Counter.read`` does."""
        now = [counter.read() for counter in self.counters]
        parts = zip(self.counters, self._last, now, strict=True)
        total = sum(counter.since(before, after) for counter, before, after in parts)
        self._last = now
        return total / 1e6


def find(sys: Path | None = None) -> Meter:
    """The meter of this machine; ``sys`` is what is mounted at /sys.

    Raises ``EdgeDBError`` that says what is missing: counters, or the right to read them.
    """
    sys = sys or SYS
    counters = list(_powercap(sys / "class/powercap")) or list(_hwmon(sys / "class/hwmon"))
    if not counters:
        raise EdgeDBError(
            "this system shows no energy counters (RAPL): neither a package in "
            f"{sys / 'class/powercap'} nor amd_energy in {sys / 'class/hwmon'}; "
            "virtual machines seldom have any"
        )
    return Meter(counters)


def _powercap(folder: Path) -> Iterable[Counter]:
    """Zones of whole packages. Their parts (cores, memory) lie inside them, and ``psys`` is all of
    a laptop."""
    for zone in sorted(folder.glob("*-rapl*:*")):
        name = _text(zone / "name")
        if re.fullmatch(r"package-\d+(-die-\d+)?", name):
            yield Counter(name, zone / "energy_uj", _whole_number(zone / "max_energy_range_uj"))


def _hwmon(folder: Path) -> Iterable[Counter]:
    for chip in sorted(folder.glob("hwmon*")):
        if _text(chip / "name") != "amd_energy":
            continue
        for label in sorted(chip.glob("energy*_label")):
            if (name := _text(label)).startswith("Esocket"):
                yield Counter(name, label.with_name(label.name.replace("_label", "_input")))


def _text(file: Path) -> str:
    """What a small file says; nothing where there is none."""
    try:
        return one_line(file.read_text(errors="replace").strip(), NAME_CHARS)
    except OSError:
        return ""


def _whole_number(file: Path) -> int:
    try:
        text = file.read_text(errors="replace").strip()
    except PermissionError:
        raise EdgeDBError(f"{file} {_ROOT_ALONE}") from None
    except OSError as error:
        raise EdgeDBError(f"{file}: {error.strerror}") from None
    if not re.fullmatch(r"\d{1,20}", text, re.ASCII):
        raise EdgeDBError(f"{file}: expected a number of microjoules")
    return int(text)
