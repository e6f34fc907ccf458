"""Make a ``.dbb``: ``python -m tools.export STUDENT.safetensors OUT.dbb`` of a trained student.

Of a checkpoint it does what ``edgedb convert`` does, with the same options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgedb.cli.convert import conversion_options, resumable, run
from edgedb.cli.options import OneLineErrors
from edgedb.errors import EdgeDBError


@click.command(cls=OneLineErrors)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@conversion_options
@click.pass_context
def main(context: click.Context, source: Path, out: Path, **options: Any) -> None:
    """Convert SOURCE (a trained student, Hugging Face directory or GGUF file) to OUT.dbb.

    An interrupted run goes on where it stopped when the same command is given again. A student is
    taken as it was trained: only --calibration applies, a text to compare engine and PyTorch on.
    """
    with resumable():
        train = options.pop("train")
        if source.suffix == ".safetensors":  # a trained student; Hugging Face's are directories
            _refuse_others(context, "a trained student is exported as it is", "calibration")
            from .export_student import export as export_trained  # needs torch

            export_trained(source, out, check=options["calibration"])
        elif train:
            known = ("train", "pairs", "plan", "calibration", "calibration_tokens", "seed")
            _refuse_others(context, "training has no use for it", *known)
            _train(source, out, options, _given(context, "calibration_tokens"))
        else:
            run(source, out, **options)


def _train(source: Path, out: Path, options: Mapping[str, Any], sized: bool) -> None:
    """Train a student block by block beside ``out``, and export it.

    sized: the calibration's tokens were asked for, and are those to train on.
    """
    if options["calibration"] is None:
        raise EdgeDBError("--train blocks needs --calibration FILE, a text to train on")
    from edgedb.convert.plan import plan_of_file

    from . import blocks
    from .export_student import export as export_trained

    student = out.with_suffix(".safetensors")
    text = blocks.Text([options["calibration"]])
    if sized:
        text = replace(text, tokens=options["calibration_tokens"])
    settings = blocks.options_of(blocks.settings(["--seed", str(options["seed"])]))
    blocks.train(
        source,
        student,
        text,
        f"{options['pairs']}, {plan_of_file(options['plan'])}",
        settings,
        device=blocks.default_device(),
    )
    export_trained(student, out)


def _given(context: click.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _refuse_others(context: click.Context, reason: str, *known: str) -> None:
    """Raise ``EdgeDBError`` if an option that is not ``known`` was given."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (name := parameter.name)
        and name not in ("source", "out", *known)
        and _given(context, name)
    ]
    if given:
        raise EdgeDBError(
            f"{', '.join(sorted(given))}: {reason}; of the options only "
            f"{', '.join('--' + name.replace('_', '-') for name in known)} applies to it"
        )


if __name__ == "__main__":
    main()
