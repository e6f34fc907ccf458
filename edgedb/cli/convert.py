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
from .sizes import SIZE
from .training import convert_with_tools, typed

bits_option = click.option(
    "--bits",
    type=click.FloatRange(2, 16),
    help="Bits a weight of all matrices together: finds out where errors cost most and gives "
    "each matrix 1, 1.5, 2 or 3 pairs.",
)
calibration_options = together(
    click.option(
        "--calibration",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Calibrate with this text instead of one sampled from the model: far better.",
    ),
    click.option("--no-calibration", is_flag=True, help="Fit weights alone: faster and worse."),
)
fit_threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads of the fit  [all cores]"
)

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
        type=click.Choice([f"{planes / 2:g}" for planes in range(2, MAX_FIT_PLANES + 1)]),
        default="2",
        show_default=True,
        help="Pairs of bit planes, two bits a weight each. One is useless without training.",
    ),
    bits_option,
    click.option(
        "--size",
        "size_bytes",
        type=SIZE,
        help="The same for a file of at most so much: 900MB, 1.2GB.",
    ),
    click.option(
        "--plan",
        default="",
        metavar="TEXT|FILE",
        help="Other pairs for some matrices: layers.0-3=2, layers.*.mlp_down=1.5; or a file of "
        "such. With --bits or --size: the file to write the plan to.",
    ),
    click.option(
        "--embedding",
        type=click.Choice(TABLE_KINDS),
        help="Storage of the embedding; 2: pairs  [int8]",
    ),
    click.option(
        "--head", type=click.Choice(TABLE_KINDS), help="Storage of a separate head  [embedding's]"
    ),
    calibration_options,
    click.option(
        "--calibration-tokens",
        type=click.IntRange(Options.length, 1 << 20),
        default=Options.length * Options.sequences,
        show_default=True,
        help=f"Tokens to calibrate with, in sequences of {Options.length}. Four times as many take "
        "a fifth off the KL divergence, and three times as long.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the sampled text."),
    fit_threads_option,
    click.option(
        "--train",
        type=click.Choice(["blocks"]),
        help="Train it layer by layer on the text of --calibration: needs PyTorch and a checkout.",
    ),
)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@conversion_options
@click.option("--dry-run", is_flag=True, help="Only say what it would take: see edgedb fits.")
@click.pass_context
def convert(
    context: click.Context, source: Path, out: Path | None, dry_run: bool, **options: Any
) -> None:
    """Convert a checkpoint to a .dbb file.

    SOURCE is a Hugging Face directory or a GGUF file, OUT the file to write. An interrupted run
    goes on where it stopped when the same command is given again.

    With --dry-run SOURCE may be a model on the hub, OWNER/NAME, and there need be no OUT.
    """
    if dry_run:
        from .fits import dry_run as show

        if options.pop("train"):
            raise click.UsageError("--dry-run tells of conversions, not of --train")
        del options["threads"]
        show(str(source), read_options(**options)[0])
        return
    if out is None:
        pull = f"; a model on the hub: edgedb pull {source}" if _may_be_on_hub(source) else ""
        raise click.UsageError(f"name the file to write: edgedb convert {source} OUT.dbb{pull}")
    with resumable():
        if options.pop("train"):
            convert_with_tools(typed(context))
        else:
            run(source, out, **options)


def _may_be_on_hub(source: Path) -> bool:
    from ..hub.names import hub_name

    return hub_name(str(source)) is not None and not source.exists()


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside says that nothing is lost, and leaves with 130."""
    try:
        yield
    except KeyboardInterrupt:
        new_console().print("Interrupted. The same command goes on from here.")
        raise SystemExit(130) from None


def run(source: Path, out: Path, *, threads: int | None, **values: Any) -> None:
    """Convert with the values of ``conversion_options``."""
    options, plan_file = read_options(**values)
    from ..convert.export import export
    from ..convert.sources import open_source

    console = new_console()
    with shown_warnings(lambda text: console.print(text, style="yellow")):
        checkpoint = open_source(source)
    export(checkpoint, out, options, threads=threads, console=console, plan_file=plan_file)


def read_options(
    *,
    calibration: Path | None,
    no_calibration: bool,
    calibration_tokens: int = Options.length * Options.sequences,
    bits: float | None = None,
    size_bytes: int | None = None,
    plan: str = "",
    pairs: str = "2",
    **values: Any,
) -> tuple[Options, Path | None]:
    """The options that values of ``conversion_options`` mean, and the file to write the plan to."""
    if calibration and no_calibration:
        raise click.UsageError("--calibration and --no-calibration exclude each other")
    if bits is not None and size_bytes is not None:
        raise click.UsageError("--bits and --size exclude each other")
    budgeted = bits is not None or size_bytes is not None
    from ..convert.plan import plan_of_file

    text = "none" if no_calibration else str(calibration) if calibration else "sample"
    options = Options(
        pairs=float(pairs),
        plan="" if budgeted else plan_of_file(plan),
        bits=bits,
        size_bytes=size_bytes,
        calibration=text,
        sequences=calibration_tokens // Options.length,
        **values,
    )
    return options, Path(plan) if budgeted and plan else None
