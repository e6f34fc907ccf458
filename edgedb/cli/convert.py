"""The command ``edgedb convert``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..convert.storage import MAX_FIT_PLANES, METHODS, TABLE_KINDS, Options
from .console import new_console, shown_warnings
from .options import together

conversion_options = together(
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="fdb",
        show_default=True,
        help="fdb: fitted bit planes; rtn: round to nearest, the baseline; int8; plain floats.",
    ),
    click.option(
        "--pairs",
        type=click.IntRange(1, MAX_FIT_PLANES // 2),
        default=2,
        show_default=True,
        help="Pairs of bit planes, two bits a weight each. One is useless without training.",
    ),
    click.option(
        "--plan",
        default="",
        metavar="TEXT",
        help="Other pairs for some matrices: layers.0-3=2, layers.*.mlp_down=1.5.",
    ),
    click.option(
        "--embedding",
        type=click.Choice(TABLE_KINDS),
        help="Storage of the embedding; 2: pairs  [int8]",
    ),
    click.option(
        "--head", type=click.Choice(TABLE_KINDS), help="Storage of a separate head  [embedding's]"
    ),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Calibrate with this text instead of one sampled from the model.",
    ),
    click.option("--no-calibration", is_flag=True, help="Fit weights alone: faster and worse."),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(256, 1 << 20),
        default=8192,
        show_default=True,
        help="Tokens to calibrate with, in sequences of 256.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the sampled text."),
    click.option("--threads", type=click.IntRange(1), help="Threads of the fit  [all cores]"),
)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@conversion_options
def convert(source: Path, out: Path, **options: Any) -> None:
    """Convert a checkpoint to a .dbb file.

    SOURCE is a Hugging Face directory or a GGUF file, OUT the file to write. An interrupted run
    goes on where it stopped when the same command is given again.
    """
    with resumable():
        run(source, out, **options)


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside says that nothing is lost, and leaves with 130."""
    try:
        yield
    except KeyboardInterrupt:
        new_console().print("Interrupted. The same command goes on from here.")
        raise SystemExit(130) from None


def run(
    source: Path,
    out: Path,
    *,
    calibration: Path | None,
    no_calibration: bool,
    calibration_tokens: int,
    threads: int | None,
    **values: Any,
) -> None:
    """Convert with the values of ``conversion_options``."""
    if calibration and no_calibration:
        raise click.UsageError("--calibration and --no-calibration exclude each other")
    text = "none" if no_calibration else str(calibration) if calibration else "sample"
    options = Options(calibration=text, sequences=calibration_tokens // 256, **values)
    from ..convert.export import export
    from ..convert.sources import open_source

    console = new_console()
    with shown_warnings(lambda text: console.print(text, style="yellow")):
        checkpoint = open_source(source)
    export(checkpoint, out, options, threads=threads, console=console)
