"""The command ``edgedb``: arguments only. Every command calls one function.

Imports of the engine stay inside the commands, so that ``edgedb --help`` is fast.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..choose.settings import HELP
from ..errors import SlowBackendWarning
from .convert import convert
from .options import (
    IntList,
    OneLineErrors,
    SamplingCommand,
    backend_options,
    load_options,
    read_text,
    sampling_options,
    take_loader,
    take_sampling,
    template_option,
    threads_option,
)


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


@main.command(cls=SamplingCommand)
@click.argument("model", required=False)
@click.option("--model", "named", metavar="MODEL", help="The same as the argument.")
@click.option("-p", "--prompt", help="Answer this message only, and leave.")
@click.option("-f", "--file", help="The same, read from a file; after --prompt if both are given.")
@click.option("--session", metavar="FILE", help="Go on from this file, and save there.")
@click.option("--system", help="System message, in place of the template's own.")
@template_option
@click.option(
    "-n",
    "--max-tokens",
    type=int,
    default=1024,
    show_default=True,
    help=HELP["max_tokens"],
)
@click.option(
    "--trim",
    type=click.Choice(["off", "oldest"]),
    default="off",
    show_default=True,
    help=HELP["trim"],
)
# Without it the two-pair SmolLM2 falls into loops (2 of 36 short answers, 0 with it).
@sampling_options(temperature=0.2, repetition_penalty=1.1)
@load_options
@click.option("--stats", is_flag=True, help=HELP["stats"])
@click.option("--markdown", is_flag=True, help=HELP["markdown"])
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Dim the remarks of the program.",
)
@click.option("--no-history", is_flag=True, help="Do not keep what is typed.")
@click.option("--plain", is_flag=True, help="No line editing, no wrapping; read line by line.")
def chat(
    model: str | None,
    named: str | None,
    prompt: str | None,
    file: str | None,
    session: str | None,
    color: Any,
    no_history: bool,
    plain: bool,
    **options: Any,
) -> None:
    """Talk to MODEL, a .dbb file.

    On a terminal this is a conversation with line editing; /help lists its commands. Otherwise
    every line of standard input is one turn, and only the answers are printed.

    Without MODEL, smollm2-135m-instruct-mixed.dbb or smollm2-135m-instruct.dbb is used, from
    models in this folder, in $XDG_DATA_HOME/edgedb or in the source tree, or from $EDGEDB_MODELS.
    What you type is kept in $XDG_STATE_HOME/edgedb/history unless EDGEDB_NO_HISTORY is set.
    """
    if model is not None and named is not None:
        raise click.UsageError("give the model once, as an argument or with --model")
    from .. import chat as conversation

    if file is not None:
        content = read_text(file)
        prompt = content if prompt is None else f"{prompt}\n\n{content}"
    open_model, params = take_loader(options), take_sampling(options)
    conversation.chat(
        open_model,
        model or named,
        conversation.ChatOptions(params=params, **options),
        conversation.Manner(plain, color, not no_history, Path(session) if session else None),
        prompt=prompt,
    )


@main.command(cls=SamplingCommand)
@click.argument("model", required=False)
@click.option("-p", "--prompt", help="Text to continue.")
@click.option("-f", "--file", help="Read the text from this file.  [default: standard input]")
@click.option(
    "--chat/--raw",
    "as_chat",
    default=False,
    help="Wrap the text as a user turn of the model's chat template, or continue it as it is.  "
    "[default: raw]",
)
@click.option("--system", help="System message; only with --chat.")
@template_option
@click.option(
    "-n", "--max-tokens", type=int, default=256, show_default=True, help="Tokens to write at most."
)
@sampling_options()
@load_options
@click.option("--stats", is_flag=True, help="Print speeds to standard error at the end.")
def generate(
    model: str | None,
    prompt: str | None,
    file: str | None,
    as_chat: bool,
    system: str | None,
    chat_template_kwargs: dict[str, Any],
    max_tokens: int,
    stats: bool,
    **options: Any,
) -> None:
    """Continue a text with MODEL, a .dbb file.

    Prints only what is new.

    The text comes from --prompt, from --file or from standard input; there, one line break at its
    end does not count.
    """
    from . import ui

    if prompt is not None and file is not None:
        raise click.UsageError("give either --prompt or --file")
    if not as_chat and (system is not None or chat_template_kwargs):
        raise click.UsageError("--system and --chat-template-kwargs need --chat")
    if prompt is None:
        if file is None and sys.stdin.isatty():
            raise click.UsageError("give a text with --prompt, --file or on standard input")
        prompt = read_text(file).removesuffix("\n").removesuffix("\r")
    params, open_model = take_sampling(options), take_loader(options)
    loaded = open_model(model)
    ids = loaded.tokenize(prompt)
    if as_chat:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        ids = loaded.chat_tokens(messages, chat_template_kwargs=chat_template_kwargs)
    last = ui.answer(loaded.stream(ids, max_tokens=max_tokens, params=params, **options))
    if stats and last is not None:
        ui.stats(last.stats)


main.add_command(convert)


@main.command()
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


@main.group("eval")
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
    if as_json:
        click.echo(json.dumps({**asdict(result), "protocol": result.protocol}, indent=2))
    else:
        ui.perplexity(result)


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


@main.command()
@click.argument("model", required=False)
@click.option("--shape", help="Random weights in the shape of a known model, made in memory.")
@click.option(
    "--pairs", type=float, default=1, show_default=True, help="Plane pairs for --shape: 1, 1.5, ..."
)
@click.option(
    "--prompt", type=IntList(), default="128,512", show_default=True, help="Prompt lengths."
)
@click.option(
    "--decode", type=IntList(), default="64,128", show_default=True, help="Tokens to decode."
)
@click.option("--repetitions", type=int, default=5, show_default=True, help="Runs of each test.")
@click.option(
    "-t", "--threads", type=IntList(), help="Thread counts to measure.  [default: physical cores]"
)
@backend_options
@click.option(
    "--output",
    type=click.Choice(["md", "csv", "json"]),
    default="md",
    show_default=True,
    help="Form of the report.",
)
def bench(model: str | None, output: str, threads: tuple[int, ...] | None, **options: Any) -> None:
    """Measure the speed of a model.

    Give MODEL, a .dbb file, or --shape llama-2-7b, llama-1.1b or smollm2-135m.

    pp512 reads a prompt of 512 tokens at once, tg64 decodes 64 tokens one by one: tokens a second,
    mean and standard deviation.
    """
    from ..hub.modelfiles import find_model
    from ..measure import benchmark
    from . import ui

    report = ui.warn if sys.stderr.isatty() else None
    options["threads"] = threads or ()
    path = None if model is None else find_model(model)
    rows = benchmark.run(path, all_kernels=True, progress=report, **options)
    click.echo(benchmark.report(rows, output))
