"""The commands that measure: ``eval`` and ``bench``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import EdgeDBError
from .options import (
    IntList,
    NumberList,
    backend_options,
    kv_option,
    load_options,
    memory_option,
    read_text,
    take_loader,
)


@click.group("eval")
def evaluate() -> None:
    """Measure the quality of a model."""


@evaluate.command()
@click.argument("model")
@click.argument("text")
@click.option("--window", type=int, help="Tokens of a window.  [default: 2048]")
@click.option("--max-windows", type=int, help="Only the first windows.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@load_options
def perplexity(
    model: str,
    text: str,
    window: int | None,
    max_windows: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Perplexity of MODEL on the UTF-8 file TEXT (- is standard input).

    Windows are independent of each other; BOS comes first only if the model wants one.
    """
    from ..measure.evaluate import perplexity as measure
    from . import ui

    content = read_text(text)
    loaded = take_loader(options)(model)
    with ui.progress("windows") as show:
        result = measure(
            loaded,
            content,
            window=window,
            max_windows=max_windows,
            progress=lambda done, total, value: show(done, total, f"perplexity {value:.3f}"),
        )
    _show(result, as_json, ui.perplexity)


def _show(result: Any, as_json: bool, in_words: Callable[[Any], None]) -> None:
    """A measurement, a dataclass that names its ``protocol``."""
    if as_json:
        click.echo(json.dumps({**asdict(result), "protocol": result.protocol}, indent=2))
    else:
        in_words(result)


@evaluate.command()
@click.argument("model")
@click.argument("base")
@click.option("--max-windows", type=int, help="Only the first windows.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@load_options
def kl(model: str, base: str, max_windows: int | None, as_json: bool, **options: Any) -> None:
    """KL divergence of MODEL from the teacher whose predictions are in the file BASE.

    BASE is written by "edgedb eval base", or by llama.cpp's "llama-perplexity
    --kl-divergence-base"; the protocol is llama-perplexity's.
    """
    from ..measure.divergence import divergence
    from . import ui

    loaded = take_loader(options)(model)
    with ui.progress("windows") as show:
        result = divergence(
            loaded,
            Path(base),
            max_windows=max_windows,
            progress=lambda done, total, value: show(done, total, f"KL {value:.4f}"),
        )
    _show(result, as_json, ui.divergence)


@evaluate.command()
@click.argument("model")
@click.argument("text")
@click.argument("out", metavar="BASE")
@click.option("--window", type=int, help="Tokens of a window.  [default: 2048]")
@click.option("--max-windows", type=int, help="Only the first windows.  [default: all]")
@load_options
def base(
    model: str,
    text: str,
    out: str,
    window: int | None,
    max_windows: int | None,
    **options: Any,
) -> None:
    """Write what MODEL, a teacher, predicts on TEXT to BASE, for "edgedb eval kl".

    A token takes two bytes for each entry of the vocabulary: 100 MB a window of SmolLM2's.
    """
    from ..measure.divergence import write_base
    from . import ui

    content = read_text(text)
    loaded = take_loader(options)(model)
    with ui.progress("windows") as show:
        count = write_base(
            loaded,
            content,
            Path(out),
            window=window,
            max_windows=max_windows,
            progress=lambda done, total, value: show(done, total, f"perplexity {value:.3f}"),
        )
    ui.say(f"{out}: {count} windows")


@evaluate.command()
@click.argument("model")
@click.argument("questions", nargs=-1, required=True)
@click.option(
    "--max-questions", type=click.IntRange(1), help="Only the first of each file.  [default: all]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@load_options
def choices(
    model: str,
    questions: tuple[str, ...],
    max_questions: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Multiple choice by MODEL, without examples, for files of QUESTIONS.

    A line of a file is a JSON object with "context" and "choices", or "contexts" and one
    "continuation", and with "gold", the number of the right one. The likeliest ending is the answer
    (accuracy), or the likeliest for its length in characters (normalized).
    """
    from ..measure.choices import multiple_choice, read_questions
    from . import ui

    files = {path: read_questions(Path(path))[:max_questions] for path in questions}
    loaded = take_loader(options)(model)
    results = {}
    for path, asked in files.items():
        with ui.progress(Path(path).stem) as show:
            results[path] = multiple_choice(
                loaded,
                asked,
                progress=lambda done, total, value, show=show: show(  # type: ignore[misc]
                    done, total, f"accuracy {value:.3f}"
                ),
            )
    if as_json:
        click.echo(json.dumps({path: asdict(result) for path, result in results.items()}, indent=2))
    else:
        ui.choices(results)


@click.command()
@click.argument("model", required=False)
@click.option("--shape", help="Random weights in the shape of a known model, made in memory.")
@click.option(
    "--file", help="Make those of --shape in this file, if it is not there, and read it instead."
)
@click.option(
    "--pairs", type=float, default=1, show_default=True, help="Plane pairs for --shape: 1, 1.5, ..."
)
@click.option(
    "--prompt", type=IntList(), default="128,512", show_default=True, help="Prompt lengths."
)
@click.option(
    "--decode", type=IntList(), default="64,128", show_default=True, help="Tokens to decode."
)
@click.option("--depth", type=int, default=0, show_default=True, help="Positions before each test.")
@kv_option
@memory_option
@click.option("--repetitions", type=int, default=5, show_default=True, help="Runs of each test.")
@click.option(
    "-t", "--threads", type=IntList(), help="Thread counts to measure.  [default: physical cores]"
)
@click.option("--energy", is_flag=True, help="The processor's energy too, where it is counted.")
@backend_options
@click.option(
    "--draft",
    metavar="MODEL",
    help="Measure answers with this draft and without; with --shape, another shape of one pair.",
)
@click.option(
    "--acceptance",
    type=NumberList(),
    default="",
    help="Have so many of its guesses be right, as 0.5,0.7, whatever it thinks.",
)
@click.option(
    "--output",
    type=click.Choice(["md", "csv", "json"]),
    default="md",
    show_default=True,
    help="Form of the report.",
)
def bench(
    model: str | None,
    output: str,
    threads: tuple[int, ...] | None,
    energy: bool,
    draft: str | None,
    acceptance: tuple[float, ...],
    **options: Any,
) -> None:
    """Measure the speed of a model.

    Give MODEL, a .dbb file or a model's name, or --shape, such as smollm2-135m, qwen3-0.6b,
    llama-3.2-1b, llama-2-7b or qwen3-30b-a3b (9 GB at one pair); a name that is none lists them.

    pp512 reads a prompt of 512 tokens at once, tg64 decodes 64 tokens one by one: tokens a second,
    mean and standard deviation; tg64@d4096 does so behind 4,096 positions (--depth). --energy adds
    millijoules a token by RAPL's counters, which count a whole socket and all that runs there;
    where a system shows none, it says so and measures the rest.

    With --draft, answers of the longest --decode are written with the draft and without it, in
    turns; the ratio is the median of neighbours.
    """
    from ..hub.modelfiles import find_model
    from ..measure import benchmark
    from ..measure.energy import find as find_meter
    from . import ui

    meter = None
    if energy:
        try:
            meter = find_meter()
        except EdgeDBError as error:
            ui.warn(f"no energy measured: {error}")

    report = ui.warn if sys.stderr.isatty() else None
    options["threads"] = threads or ()
    path = None if model is None else find_model(model)
    if draft is not None:
        from ..measure import drafts

        if energy:
            raise click.UsageError("--energy is for speeds without a --draft")
        options["decode"] = max(options["decode"], default=1)
        del options["prompt"]
        guided = drafts.run(path, draft, acceptance=acceptance, progress=report, **options)
        click.echo(benchmark.report(guided, output, drafts.COLUMNS))
        return
    if acceptance:
        raise click.UsageError("--acceptance is that of a --draft")
    rows = benchmark.run(path, all_kernels=True, meter=meter, progress=report, **options)
    click.echo(benchmark.report(rows, output))
