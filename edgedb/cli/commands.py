"""The command ``edgedb``; each group of its commands is a file beside this one.

Imports of the engine stay inside the commands, so that ``edgedb --help`` is fast.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from .. import __version__
from ..errors import SlowBackendWarning
from .convert import convert
from .info import info
from .measure import bench, evaluate
from .options import OneLineErrors
from .talk import chat, generate


class _Commands(OneLineErrors, click.Group):
    """Warnings of edgedb become one line, as its errors do."""

    prefix = "edgedb"

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return super().invoke(ctx)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    from . import ui

    ours = issubclass(category, SlowBackendWarning)
    ui.warn(str(message) if ours else f"{filename}:{lineno}: {category.__name__}: {message}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgedb")
def main() -> None:
    """Large language models at two bits a weight on ordinary CPUs."""


for command in (chat, generate, convert, info, evaluate, bench):
    main.add_command(command)
