"""The commands that answer: ``chat`` and ``generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..choose.settings import HELP
from .options import (
    SamplingCommand,
    draft_option,
    load_options,
    read_text,
    sampling_options,
    take_loader,
    take_sampling,
    template_option,
)


@click.command(cls=SamplingCommand)
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
@draft_option
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
    draft: str | None,
    color: Any,
    no_history: bool,
    plain: bool,
    **options: Any,
) -> None:
    """Talk to MODEL, a .dbb file or the name of a model.

    OWNER/NAME is a model on the Hugging Face hub; if it is not on this disk, a terminal is asked
    whether to pull it.

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
    for name in (model or named, draft):
        _offer_to_pull(name)
    conversation.chat(
        open_model,
        model or named,
        conversation.ChatOptions(params=params, **options),
        conversation.Manner(plain, color, not no_history, Path(session) if session else None),
        prompt=prompt,
        draft=draft,
    )


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _offer_to_pull(model: str | None) -> None:
    """Where somebody can answer; elsewhere loading the model says which command pulls it."""
    from ..hub.modelfiles import absent

    name = absent(model) if model is not None else None
    if name is not None and _terminal():
        from .pull import offer

        offer(name)


@click.command(cls=SamplingCommand)
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
@draft_option
@click.option("--stats", is_flag=True, help="Print speeds to standard error at the end.")
def generate(
    model: str | None,
    prompt: str | None,
    file: str | None,
    as_chat: bool,
    system: str | None,
    chat_template_kwargs: dict[str, Any],
    max_tokens: int,
    draft: str | None,
    stats: bool,
    **options: Any,
) -> None:
    """Continue a text with MODEL, a .dbb file or the name of a model.

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
    loaded = open_model(model, draft=draft)
    ids = loaded.tokenize(prompt)
    if as_chat:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        ids = loaded.chat_tokens(messages, chat_template_kwargs=chat_template_kwargs)
    last = ui.answer(loaded.stream(ids, max_tokens=max_tokens, params=params, **options))
    if stats and last is not None:
        ui.stats(last.stats)
