"""The files of a checkpoint's directory: whole, bounded, and in one line what is wrong with one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...errors import EdgeDBError, FormatError
from ...files import read_regular
from ...strict_json import refuse_many_values

# Far above any configuration, template, or index of shards.
_MAX_BYTES = 64 << 20


def exists(file: Path) -> bool:
    """Whether there is something of this name that is no directory.

    A name out of another file may be too long or hold a NUL, which are errors to ``Path``.
    """
    return os.path.exists(file) and not os.path.isdir(file)


def read_bytes(file: Path, limit_bytes: int = _MAX_BYTES) -> bytes:
    """The content of a regular file. Raises ``FormatError`` for anything else."""
    try:
        return read_regular(file, limit_bytes)
    except EdgeDBError as error:
        raise FormatError(str(error)) from None


def read_text(file: Path) -> str:
    """The UTF-8 text of a file. Raises ``FormatError`` for anything else."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file} is not UTF-8 text (byte {error.start})") from None


def read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """The JSON object in a file; an empty one if it is neither there nor ``required``.

    Raises ``FormatError`` for anything else.
    """
    if not exists(file):
        if required:
            raise FormatError(f"{file.parent.name}: {file.name} is missing")
        return {}
    text = read_bytes(file)
    refuse_many_values(text, f"{file.parent.name}: {file.name}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.parent.name}: {file.name}: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file.parent.name}: {file.name} is not a JSON object")
    return value
