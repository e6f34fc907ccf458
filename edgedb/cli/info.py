"""The command ``info``."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import backend_options, threads_option


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--program", "as_program", is_flag=True, help="Print the operations of a pass through MODEL."
)
@threads_option
@backend_options
def info(model: str | None, as_json: bool, as_program: bool, **options: Any) -> None:
    """Show what a model file holds and what runs it on this machine."""
    from ..measure.runtime import describe_runtime
    from . import ui

    if as_program:
        if model is None or as_json:
            raise click.UsageError("--program wants a MODEL, and no --json")
        from ..hub.modelfiles import find_model
        from ..model.dbb import read_dbb
        from ..model.families import program_of

        click.echo(program_of(read_dbb(find_model(model)).config).text())
        return
    runtime = describe_runtime(**options)
    described = None
    if model is not None:
        from ..hub.modelfiles import find_model
        from ..model.dbb import read_dbb
        from ..model.summary import summarize

        described = summarize(read_dbb(find_model(model)))
    if as_json:
        document = {"runtime": runtime} if described is None else described | {"runtime": runtime}
        click.echo(json.dumps(document, indent=2))
        return
    if described is not None:
        ui.model_info(described)
        click.echo()
    ui.runtime_info(runtime)
