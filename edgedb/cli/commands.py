"""The command ``edgedb``; each group of its commands is a file beside this one.

Imports of the engine stay inside the commands, so that ``edgedb --help`` is fast.
"""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import Any

import click

from ..errors import SlowBackendWarning
from .batch import batch
from .convert import convert
from .fits import fits
from .info import info
from .measure import bench, evaluate
from .models import models, path, rm, show
from .options import OneLineErrors
from .pull import pull
from .serve import serve
from .talk import chat, generate

# What other programs call a command of this one.
_ELSEWHERE = {
    "run": "chat",
    "complete": "generate",
    "quantize": "convert",
    "download": "pull",
    "list": "models",
    "ls": "models",
    "remove": "rm",
}


class _Commands(OneLineErrors, click.Group):
    """Warnings of edgedb become one line, as its errors do."""

    prefix = "edgedb"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and args[0][:1] != "-":
            near = get_close_matches(args[0], [*self.commands, *_ELSEWHERE], n=1)
            if near:
                meant = _ELSEWHERE.get(near[0], near[0])
                ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

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


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"edgedb, version {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Large language models at two bits a weight on ordinary CPUs."""


for command in (
    chat,
    generate,
    serve,
    batch,
    pull,
    models,
    show,
    path,
    rm,
    convert,
    fits,
    info,
    evaluate,
    bench,
):
    main.add_command(command)
