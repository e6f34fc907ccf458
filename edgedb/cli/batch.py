"""The command ``batch``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..choose.settings import HELP
from .options import (
    LOADING,
    SamplingCommand,
    cache_tokens_option,
    draft_option,
    load_options,
    sampling_options,
    take_sampling,
    template_option,
)

FAILED = 3  # exit code: the output is complete, and some of it are failures


@click.command(cls=SamplingCommand)
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.option("--model", help="A .dbb file or the name of a model.")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    help="Another name of the model, for lines in OpenAI's form. May be repeated.",
)
@click.option(
    "-n", "--max-tokens", type=int, default=1024, show_default=True, help=HELP["max_tokens"]
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 128),
    default=16,
    show_default=True,
    help="Lines to answer at a time, on each machine.",
)
@cache_tokens_option
@click.option(
    "--ray", "address", metavar="ADDRESS", help="Use a Ray cluster; auto: the one that runs here."
)
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever is there.")
@template_option
@sampling_options(seed=0)
@load_options
@draft_option
def batch(
    source: Path,
    out: Path,
    model: str | None,
    aliases: Sequence[str],
    parallel: int,
    cache_tokens: int | None,
    address: str | None,
    overwrite: bool,
    draft: str | None,
    **options: Any,
) -> None:
    """Answer the lines of IN.jsonl into OUT.jsonl.

    A line is a JSON object with a "prompt" or "messages", and if you like an "id" and options of
    its own: {"id": "a", "prompt": "Once upon a time", "max_tokens": 64}.

    Until it is complete, what is done is in OUT.jsonl.part; the same command goes on from there.
    OUT.jsonl has the order of IN.jsonl, and is the same on any machine or number of them. The exit
    code is 3 if some lines failed.
    """
    from ..hub.modelfiles import default_model
    from ..jobs.answering import Answering
    from ..jobs.batch import Opening, run_batch
    from ..jobs.defaults import Defaults, identity
    from ..jobs.machine import answer_here
    from . import ui

    params = take_sampling(options)
    chosen = {name: options.pop(name) for name in LOADING}
    path = _absolute(str(default_model()) if model is None else model)
    if draft is not None:
        draft = _absolute(draft)
    opening = Opening(path, parallel, cache_tokens=cache_tokens, draft=draft, **chosen)
    defaults = Defaults(params, aliases=tuple(aliases), **options)
    loaded = opening.model()
    same = identity(loaded, defaults)
    with ui.batch_progress() as show:
        if address is None:
            answering = Answering(loaded, defaults)
            summary = run_batch(
                source,
                out,
                same,
                lambda lines: answer_here(answering, lines, parallel),
                overwrite=overwrite,
                progress=show,
            )
        else:
            from ..jobs.cluster import cluster

            with cluster(address) as found:
                summary = run_batch(
                    source,
                    out,
                    same,
                    lambda lines: found.answer(lines, opening, defaults, same),
                    overwrite=overwrite,
                    progress=show,
                )
    ui.batch_summary(str(out), summary)
    if loaded.draft is not None and address is None:
        ui.guesses(loaded.draft.experience.drafted, loaded.draft.experience.accepted)
    if summary.failed:
        click.get_current_context().exit(FAILED)


def _absolute(name: str) -> str:
    """A path as any machine's worker finds it, whose folder is another one; a name as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name
