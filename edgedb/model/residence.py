"""Where the bytes of a model's file lie: in a mapping of it, or in a copy.

A processor remembers where some thousand pages are. Weights in pages of 4 KiB are more than that,
so reading them waits for addresses; in pages of 2 MiB they are not. A mapping lies in huge pages
where the system's cache of the file does, which is shared by all processes; a copy is a process's
own, and lies in them wherever the system gives them.
"""

from __future__ import annotations

import errno
import mmap
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import EdgeDBError, FormatError
from ..files import size_text
from ..ops.buffer import HUGE
from ..ops.cores import ROOT, control_groups

MEMORIES = ("auto", "map", "copy")
# What `auto` copies: files that caches do not hold, into at most so much of the memory that is
# free, and where so many bytes a second come, all of them within a second.
SMALLEST_COPY = 1 << 25
SHARE_OF_FREE = 0.5
SLOWEST_COPY = 1e9
MAX_COPY_SECONDS = 1.0
_IN_HUGE_PAGES = ("AnonHugePages:", "FilePmdMapped:", "ShmemPmdMapped:")  # of /proc/self/smaps
_PLACES = 32  # of a mapping that are looked at
_STEP = 1 << 23  # bytes of a read, after which Ctrl-C and the clock are heard

Bytes = mmap.mmap | memoryview


@dataclass(frozen=True)
class Placed:
    """The bytes of a file, read-only, and where they lie: ``map`` or ``copy``."""

    data: Bytes
    memory: str


def place(
    fd: int,
    size: int,
    memory: str,
    root: Path = ROOT,
    clock: Callable[[], float] = time.monotonic,
) -> Placed:
    """The ``size`` bytes of an open file, as ``memory``, one of ``MEMORIES``, says.

    ``auto`` maps the file, and copies it where all of this holds: the system gives huge pages, the
    mapping does not lie in them, and the limits above are kept. Raises ``EdgeDBError`` if a copy
    was asked for that memory does not hold, ``FormatError`` if the file cannot be read.
    """
    if memory == "copy":
        free = free_bytes(root)
        try:
            if free is not None and size > free:
                raise OSError(errno.ENOMEM, f"{size_text(free)} is free")
            copy = _copy(fd, size)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EAGAIN):
                raise
            raise EdgeDBError(
                f"no memory for a copy of {size_text(size)} ({error.strerror}): "
                "load it with memory map"
            ) from None
        assert copy is not None
        return Placed(copy, "copy")
    try:
        mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"cannot be mapped into memory: {error.strerror}") from None
    _ask_for_huge_pages(mapped)
    if memory == "auto" and _wants_copy(mapped, size, root):
        with suppress(OSError):  # no memory after all
            seconds = min(size / SLOWEST_COPY, MAX_COPY_SECONDS)
            copy = _copy(fd, size, clock, clock() + seconds)
            if copy is not None:
                return Placed(copy, "copy")
    return Placed(mapped, "map")


def huge_pages(root: Path = ROOT) -> str:
    """When the system gives huge pages: ``always``, ``madvise`` (where a program asks for them),
    ``never``, or nothing where it has none."""
    with suppress(OSError):
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
        if found := re.search(r"\[(\w+)\]", text):
            return found[1]
    return ""


def describe_huge_pages(root: Path = ROOT) -> str:
    """``huge_pages`` for people."""
    return {
        "always": "yes, everywhere",
        "madvise": "yes, where asked for",
        "never": "no, switched off: a copy of the weights lies in small pages",
        "": "no, not on this system",
    }.get(huge_pages(root), huge_pages(root))


def huge_bytes(arrays: Sequence[np.ndarray], root: Path = ROOT) -> int | None:
    """How much of the memory around ``arrays`` (of the mappings that they lie in) is in huge pages.
    Only what was touched counts. None where the system does not say."""
    ranges = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays]
    total, inside = 0, False
    try:
        text = (root / "proc/self/smaps").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for name, _, rest in (line.partition(" ") for line in text.splitlines()):
        if not name.endswith(":"):
            begin, end = (int(address, 16) for address in name.split("-"))
            inside = any(first < end and begin < last for first, last in ranges)
        elif inside and name in _IN_HUGE_PAGES:
            total += 1024 * int(rest.split()[0])
    return total


def lies(memory: str, arrays: Sequence[np.ndarray]) -> str:
    """Where ``arrays``, which were read, lie: ``memory``, and how much of them is in huge pages."""
    huge, size = huge_bytes(arrays), sum(array.nbytes for array in arrays)
    return memory if huge is None else f"{memory}, {min(1.0, huge / max(1, size)):.0%} huge"


def free_bytes(root: Path = ROOT) -> int | None:
    """Bytes that a process may still take: the machine's, or what its control groups leave. None
    where the system does not say."""
    found = _fields(root / "proc/meminfo").get("MemAvailable")
    if found is None:
        return None
    left = [_left(folder) for folder in control_groups(root, "memory")]
    return max(0, min([found * 1024, *(n for n in left if n is not None)]))


def granted_bytes(folder: Path) -> int | None:
    """Bytes that one control group grants: a file of version 2, or of 1. None: no limit."""
    return _number(folder, "memory.max", "memory.limit_in_bytes")


def _left(folder: Path) -> int | None:
    granted = granted_bytes(folder)
    used = _number(folder, "memory.current", "memory.usage_in_bytes")
    if granted is None or used is None:
        return None
    cached = _fields(folder / "memory.stat")  # given back when somebody wants it
    return granted - used + cached.get("inactive_file", 0) + cached.get("active_file", 0)


def _number(folder: Path, *names: str) -> int | None:
    for name in names:
        with suppress(OSError, ValueError):  # none set ("max"), or no such file
            return int((folder / name).read_text(encoding="ascii"))
    return None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text("ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    """A mapping then is read from the disk in huge pages, where the file system has them; what the
    cache holds already stays as it is."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError, ValueError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def _wants_copy(mapped: mmap.mmap, size: int, root: Path) -> bool:
    if size < SMALLEST_COPY or huge_pages(root) not in ("always", "madvise"):
        return False
    free = free_bytes(root)
    return free is not None and size <= SHARE_OF_FREE * free and not _lies_in_huge(mapped, root)


def _lies_in_huge(mapped: mmap.mmap, root: Path) -> bool:
    """Whether three of four of a few places of a mapping are in huge pages; reads them."""
    data = np.frombuffer(mapped, np.uint8)
    pages = -(-data.size // HUGE)
    places = np.linspace(0, pages - 1, min(pages, _PLACES)).astype(np.int64) * HUGE
    data[places].sum()
    return 4 * (huge_bytes([data], root) or 0) >= 3 * len(places) * HUGE


def _copy(
    fd: int,
    size: int,
    clock: Callable[[], float] = time.monotonic,
    deadline: float = float("inf"),
) -> memoryview | None:
    """The file in memory of our own, in huge pages where the system gives them; None if it is not
    there by the deadline."""
    if hasattr(mmap, "MAP_PRIVATE"):
        memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, size + HUGE)
    _ask_for_huge_pages(memory)
    start = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE
    whole = memoryview(memory)[start : start + size]
    done = 0
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        while done < size:
            try:
                n = file.readinto(whole[done : done + _STEP])
            except OSError as error:
                raise FormatError(f"cannot be read: {error.strerror}") from None
            if not n:
                raise FormatError(f"the file is truncated: it ended after {done} of {size} bytes")
            done += n
            if clock() > deadline:
                return None
    return whole.toreadonly()
