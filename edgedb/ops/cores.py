"""How many threads a machine is good for, within what its control groups grant."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def physical_cores(root: Path = ROOT) -> int:
    """Physical cores that this process may keep busy; at least 1. On macOS and Windows those of
    the fastest kind alone: every thread would wait for one on a slow core.

    ``root`` is the folder that has ``proc`` and ``sys``.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return _fast_cores() or os.cpu_count() or 1
    return _within_quota(len({_siblings(root, cpu) for cpu in _affinity()}), root)


def usable_cpus(root: Path = ROOT) -> int:
    """The same with every hardware thread counted."""
    return _within_quota(len(_affinity()), root)


def _fast_cores() -> int:
    from . import library

    return int(library.lib.edb_fast_cores()) if library.lib is not None else 0


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return set(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> str:
    """A name shared by the hardware threads of one core."""
    try:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        return path.read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _within_quota(count: int, root: Path) -> int:
    # Rounded down: with 1.5 CPUs a second thread is stopped for half of each period, and the first
    # one waits for it at every join.
    return max(1, min(count, math.floor(min(cpu_quota(root), count))))


def cpu_quota(root: Path = ROOT) -> float:
    """CPUs that the control groups of this process grant, infinity if they set no limit.

    A group is bound by those above it, so the smallest of all limits counts.
    """
    return min((_limit(folder) for folder in control_groups(root, "cpu")), default=math.inf)


def _limit(folder: Path) -> float:
    """CPUs that one group grants: version 2 has its quota and period in one file, 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        granted = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none set ("max"), or no such files
        return math.inf
    return granted if granted > 0 else math.inf  # version 1 says -1


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups of this process that can limit what ``controller`` (``cpu``,
    ``memory``) says, and of those above."""
    # Version 2 has one hierarchy, number 0 without a controller's name; version 1 one for each set.
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif controller in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, source = line.partition(" - ")
        fields, kind = place.split(), source.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and controller not in kind[2].split(","):
            continue
        mounted, top = fields[3], root / fields[4].lstrip("/")
        yield top
        try:
            below = PurePosixPath(paths[kind[0]]).relative_to(mounted).parts
        except ValueError:  # the group is outside of what this container sees
            continue
        if ".." not in below:
            yield from (top.joinpath(*below[: depth + 1]) for depth in range(len(below)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
