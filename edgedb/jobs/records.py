"""What becomes of a line: a line of the output, in the form in which it asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..display import one_line
from .lines import Line


@dataclass(frozen=True)
class Record:
    """A line of the output."""

    number: int  # of the line that asked
    text: str  # JSON
    failed: bool
    tokens: int = 0  # that were written


def answered(line: Line, record: Mapping[str, Any], tokens: int) -> Record:
    """The record of a line in the plain form."""
    return Record(line.number, to_json({"id": line.id, **record}), False, tokens)


def responded(line: Line, status: int, body: Mapping[str, Any], tokens: int = 0) -> Record:
    """The record of a line in OpenAI's form: what a server would have answered."""
    record = {
        "id": f"batch_req_{line.key}",
        "custom_id": line.id,
        "response": {"status_code": status, "request_id": f"req_{line.key}", "body": body},
        "error": None,
    }
    return Record(line.number, to_json(record), status != 200, tokens)


def failure(line: Line, reason: str) -> Record:
    """The record of a line that could not be read, or whose answer failed."""
    said = one_line(reason)
    if line.url is None:
        return Record(
            line.number, to_json({"id": line.id, "line": line.number, "error": said}), True
        )
    record = {
        "id": f"batch_req_{line.key}",
        "custom_id": line.id,
        "response": None,
        "error": {"code": "failed", "message": said, "line": line.number},
    }
    return Record(line.number, to_json(record), True)


def to_json(document: Mapping[str, Any]) -> str:
    """One line; characters as themselves, if all of them can be written."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which a request may hold
        text = json.dumps(document, allow_nan=False)
    return text
