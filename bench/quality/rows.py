"""Finished rows of figures, kept one by one, so that a run that is killed goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.curves import mend_log, read_log

Row = dict[str, Any]


class Rows:
    """JSON lines of a file. A row is found by the figures that say what was measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        mend_log(path)
        self._rows = read_log(path) if path.exists() else []

    def all(self, **key: Any) -> list[Row]:
        """Rows that hold all of ``key``, oldest first."""
        return [row for row in self._rows if key.items() <= row.items()]

    def last(self, **key: Any) -> Row | None:
        """The newest of them."""
        return next(reversed(self.all(**key)), None)

    def add(self, row: Row) -> Row:
        """Store one more."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)
        return row
