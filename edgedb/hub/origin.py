"""``origin.json`` beside models that were pulled: for each where it comes from, for people, for
``pull``, which compares it, and for names with a revision. No model needs it to run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import EdgeDBError
from ..files import read_regular, replacing

FILE = "origin.json"
_MAX_BYTES = 4 << 20
_Records = dict[str, dict[str, Any]]


def origin_of(model: Path) -> dict[str, Any]:
    """What is known of a model file: ``repository``, ``revision`` (the commit), ``asked`` (the
    branch or tag), ``files`` (name -> bytes and hash), ``options``, ``versions``; or nothing."""
    return _read(model.parent).get(model.name, {})


def write_origin(model: Path, record: dict[str, Any]) -> None:
    """Raises ``EdgeDBError`` where the disk is full."""
    _write(model.parent, {**_read(model.parent), model.name: record})


def forget_origin(model: Path) -> None:
    """Leave out the record of a model that has gone; without any the file goes too."""
    records = _read(model.parent)
    if records.pop(model.name, None) is None:
        return
    if records:
        _write(model.parent, records)
    else:
        (model.parent / FILE).unlink(missing_ok=True)


def _read(folder: Path) -> _Records:
    if not os.path.lexists(folder / FILE):
        return {}
    try:
        found = json.loads(read_regular(folder / FILE, _MAX_BYTES))
    except (EdgeDBError, ValueError, RecursionError):
        return {}  # it tells of the models, and none needs it
    if not isinstance(found, dict):
        return {}
    return {name: record for name, record in found.items() if isinstance(record, dict)}


def _write(folder: Path, records: _Records) -> None:
    path = folder / FILE
    try:
        with replacing(path) as file:
            file.write(json.dumps(records, indent=2, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise EdgeDBError(f"{path}: {error.strerror}") from None
