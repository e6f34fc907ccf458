"""What the command lines of ``tools`` share: an error is one line and exit code 2, and what they
print steers no terminal."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from edgedb.cli.command_line import command_line
from edgedb.cli.console import shown_warnings
from edgedb.display import one_line
from edgedb.errors import EdgeDBError


def say(text: str) -> None:
    """One line on standard output, at once."""
    print(one_line(text), flush=True)


class Arguments(argparse.ArgumentParser):
    """A parser whose complaints, which quote the arguments as they are, are one line."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def one_line_errors(command: Callable[[], None]) -> Callable[[], None]:
    """Run ``command`` as ``edgedb.cli.command_line`` does: its errors are one line and exit code 2.

    What a checkpoint makes one wonder about is shown on standard error, too.
    """

    @functools.wraps(command)
    def run() -> None:
        with command_line("error"), shown_warnings(lambda text: print(text, file=sys.stderr)):
            command()

    return run


def check_writable(*files: Path | None) -> None:
    """Raise ``EdgeDBError`` if one of the files cannot be written, before hours are spent on it."""
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise EdgeDBError(f"{file} is a folder: name a file to write")
        if not file.parent.is_dir():
            raise EdgeDBError(f"{file}: there is no folder {file.parent}")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise EdgeDBError(f"{file} cannot be written: permission denied")
