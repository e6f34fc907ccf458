"""What the command lines of ``tools`` share: an error is one line and exit code 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from edgedb.errors import EdgeDBError


def one_line_errors(command: Callable[[], None]) -> Callable[[], None]:
    """Print an ``EdgeDBError`` of ``command`` to standard error and exit with 2."""

    @functools.wraps(command)
    def run() -> None:
        try:
            command()
        except EdgeDBError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    return run
