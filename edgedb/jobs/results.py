"""What is done so far: a file that only grows, and at the end becomes the output.

Records are appended to ``OUT.part`` in the order in which they come. Its first line says what they
depend on beside their lines. Once every line has its record, they are written to OUT in the order
of the input, in one step: OUT is complete or not there, and always the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .. import descriptors
from ..display import quoted
from ..errors import EdgeDBError
from ..files import replacing
from .lines import Line
from .records import Record, to_json

_VERSION = 1


class Results:
    """The records of a run, in ``OUT.part``. Used as a context, which closes it."""

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin, or go on where another run with the same ``identity`` ended; ``overwrite``: begin
        anew. Raises ``EdgeDBError`` if the other run was not the same, is still at work, or has
        finished.
        """
        self._out, self._part = out, out.with_name(f"{out.name}.part")
        if not overwrite and out.exists() and not self._part.exists():
            raise EdgeDBError(f"{out} is there already; give another name, or --overwrite")
        self._places: dict[str, tuple[int, int]] = {}  # of records, by the key of their line
        self._failed: set[str] = set()
        self._size = 0  # of the part
        self._file: BinaryIO = open(self._part, "a+b")  # noqa: SIM115
        try:
            if not descriptors.claim(self._file.fileno()):
                raise EdgeDBError(f"{self._part}: another run is at work on it")
            if overwrite:
                self._file.truncate(0)
            self._read(dict(identity))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def left(self, lines: Iterable[Line]) -> list[Line]:
        """Those without a record, and those that failed: what was missing may be there now."""
        done = self._places.keys() - self._failed
        return [line for line in lines if line.key not in done]

    def add(self, line: Line, record: Record) -> None:
        """Keep ``record``, whatever becomes of this process from here on."""
        about = json.dumps({"key": line.key, "failed": record.failed})
        place = self._append(f'{about[:-1]}, "record": {record.text}}}')
        self._note(line.key, record.failed, *place)

    def finish(self, lines: Iterable[Line]) -> int:
        """Write OUT and remove ``OUT.part``; how many lines failed."""
        failed = 0
        with open(self._part, "rb") as part, replacing(self._out) as file:
            for line in lines:
                start, size = self._places[line.key]
                part.seek(start)
                entry = json.loads(part.read(size))
                failed += entry["failed"]
                file.write(to_json(entry["record"]).encode() + b"\n")
        if not descriptors.OPEN_FILES_MOVE:
            self._file.close()
        self._part.unlink()
        return failed

    def _append(self, text: str) -> tuple[int, int]:
        """Where the line is, and its size. No buffer: what failed is not tried again at the end."""
        raw = text.encode() + b"\n"
        start, left = self._size, memoryview(raw)
        try:
            while left:
                left = left[os.write(self._file.fileno(), left) :]
        except OSError as error:
            raise EdgeDBError(
                f"{self._part}: {error.strerror}; what is there is kept, run again to go on"
            ) from None
        self._size += len(raw)
        return start, len(raw)

    def _note(self, key: str, failed: bool, start: int, size: int) -> None:
        self._places[key] = start, size
        (self._failed.add if failed else self._failed.discard)(key)

    def _read(self, identity: dict[str, Any]) -> None:
        """Take over what is there; a last line that was torn is cut off."""
        head = {"edgedb batch": _VERSION, **identity}
        self._file.seek(0)
        start = 0
        for number, raw in enumerate(self._file, 1):
            entry = _parsed(raw, head=number == 1)
            if entry is None and raw.endswith(b"\n"):
                raise EdgeDBError(f"{self._part}: line {number} is damaged; remove that line")
            if entry is None:
                break
            if number == 1:
                self._compare(entry, head)
            else:
                self._note(entry["key"], entry["failed"], start, len(raw))
            start += len(raw)
        self._file.truncate(start)
        self._size = start
        if start == 0:
            self._append(to_json(head))

    def _compare(self, begun: dict[str, Any], head: dict[str, Any]) -> None:
        for name in (*head, *begun):
            if begun.get(name) != head.get(name):
                raise EdgeDBError(
                    f"{self._part} was begun with {name} = {quoted(begun.get(name))}, and this run "
                    f"has {quoted(head.get(name))}; give the same to go on, or --overwrite"
                )


def _parsed(raw: bytes, *, head: bool) -> dict[str, Any] | None:
    """What a whole line says, if it is the first one or has a record."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not raw.endswith(b"\n"):
        return None
    kept = isinstance(found.get("key"), str) and isinstance(found.get("failed"), bool)
    return found if head or (kept and isinstance(found.get("record"), dict)) else None
