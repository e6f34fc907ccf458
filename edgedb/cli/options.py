"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..choose.settings import HELP, Setting, read_variables, sampling_settings, unescape
from ..display import one_line
from ..errors import EdgeDBError
from .command_line import command_line

if TYPE_CHECKING:
    from ..choose.sampling import SamplingParams
    from ..run.engine import Model

Function = TypeVar("Function", bound=Callable[..., Any])
LOADING = ("threads", "backend", "isa", "context", "kv_dtype", "head", "memory")


class IntList(click.ParamType):
    """Whole numbers with commas between them."""

    name = "n,n,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 1,2", param, ctx)


class NumberList(click.ParamType):
    """Numbers with commas between them."""

    name = "x,x,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 0.5,0.7", param, ctx)


class OneLine(click.ParamType):
    """A text in which escapes stand for what one line cannot hold."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        return unescape(value)


class Variables(click.ParamType):
    """Names and values, as JSON."""

    name = "json"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_variables(value)
        except ValueError:
            self.fail(
                f'{value!r} is not a JSON object like {{"enable_thinking": false}}', param, ctx
            )


class OneLineErrors(click.Command):
    """A command whose errors are one line, also those about arguments, which click quotes as they
    are; see ``command_line``."""

    prefix = "error"  # of the line

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with command_line(self.prefix):
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _one_line_usage():
                return super().invoke(ctx)
        except KeyboardInterrupt:  # of which click would make "Aborted!" and 1
            ctx.exit(130)


# What newer versions of click raise where a group was given nothing: its message is the help.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


@contextmanager
def _one_line_usage() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        if isinstance(error, _HELP):
            raise
        if isinstance(error, click.NoSuchOption) and error.ctx:
            known = [
                name for param in error.ctx.command.get_params(error.ctx) for name in param.opts
            ]
            longer = [name for name in known if name.startswith(error.option_name)]
            if longer:
                error = click.NoSuchOption(error.option_name, possibilities=longer, ctx=error.ctx)
        message = one_line(error.format_message())
        error.format_message = lambda: message  # type: ignore[method-assign]
        raise error from None


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in this order."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


cache_tokens_option = click.option(
    "--cache-tokens",
    type=int,
    help="Tokens in memory, of all answers and of earlier ones.  [default: what an eighth of the "
    "memory holds]",
)
backend_options = together(
    click.option(
        "--backend",
        type=click.Choice(["native", "numba", "numpy"]),
        help="Kernels to use.  [default: the best that can run]",
    ),
    click.option("--isa", help="Instruction set of the native kernels.  [default: the best]"),
)
threads_option = click.option(
    "-t", "--threads", type=int, help="Threads.  [default: physical cores]"
)
context_option = click.option(
    "--context", type=int, help="Tokens a session can hold.  [default: the model's, at most 8192]"
)
kv_option = click.option(
    "--kv-dtype",
    type=click.Choice(["float16", "float32", "int8"]),
    default="float16",
    show_default=True,
    help="How the context is kept; int8 halves its memory.",
)
head_option = click.option(
    "--head",
    type=click.Choice(["full", "two-stage"]),
    default="full",
    show_default=True,
    help="two-stage: leave out logits that no choice depends on; same text.",
)
memory_option = click.option(
    "--memory",
    type=click.Choice(["auto", "map", "copy"]),
    default="auto",
    show_default=True,
    help="Where the weights lie: in the mapped file, or in a copy in huge pages.",
)
load_options = together(
    threads_option, backend_options, context_option, kv_option, head_option, memory_option
)
lookup_option = click.option(
    "--prompt-lookup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help=HELP["prompt_lookup"],
)
draft_option = click.option(
    "--draft",
    metavar="MODEL",
    help="A small model of the same tokenizer that guesses tokens: same answers, faster where it "
    "is right.",
)
template_option = click.option(
    "--chat-template-kwargs",
    type=Variables(),
    default=dict,
    help=HELP["chat_template_kwargs"],
)
stop_options = together(
    click.option("--stop", multiple=True, type=OneLine(), help=f"{HELP['stop']} May be repeated."),
    click.option("--stop-ids", type=IntList(), default="", help=HELP["stop_ids"]),
)


class SamplingCommand(click.Command):
    """A command with one option for every field of ``SamplingParams``.

    They are looked up when the command runs or explains itself: importing ``choose.sampling`` takes
    longer than ``edgedb --help`` should.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found: list[click.Parameter] = []
        for param in super().get_params(ctx):
            found += param.options() if isinstance(param, _SamplingOptions) else [param]
        return found


class _SamplingOptions(click.Option):
    """Stands where the sampling options will be."""

    def __init__(self, *args: Any, defaults: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.defaults = defaults

    def options(self) -> list[click.Parameter]:
        settings = sampling_settings().values()
        return [_option(s, self.defaults.get(s.name, s.default)) for s in settings]


class _SettingType(click.ParamType):
    """What the text form of a setting says."""

    name = "text"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.setting.read(value)
        except EdgeDBError as error:
            self.fail(str(error), param, ctx)


def _option(setting: Setting, default: Any) -> click.Option:
    flag = f"--{setting.name.replace('_', '-')}"
    kind = setting.form.number or _SettingType(setting)
    # Click would show a None not at all and anything else in its Python form.
    text = f"{setting.help}  [default: {setting.show(default)}]"
    return click.Option([flag], type=kind, default=default, help=text)


def sampling_fields(**defaults: Any) -> Callable[[Function], Function]:
    """Sampling alone; ``defaults`` in place of those of ``SamplingParams``.

    The command must be a ``SamplingCommand``.
    """
    return click.option(
        "--sampling", cls=_SamplingOptions, defaults=defaults, expose_value=False, hidden=True
    )


def sampling_options(**defaults: Any) -> Callable[[Function], Function]:
    """Sampling, ends, guesses; as ``sampling_fields``."""
    return together(sampling_fields(**defaults), stop_options, lookup_option)


def take_sampling(options: dict[str, Any]) -> SamplingParams:
    """Take the sampling options out of a command's ``options``."""
    from ..choose.sampling import SamplingParams

    return SamplingParams(**{name: options.pop(name) for name in sampling_settings()})


def take_loader(options: dict[str, Any]) -> Callable[..., Model]:
    """Take the load options out of a command's ``options``; opens models with them.

    ``None`` opens the default model; ``EdgeDBError`` says how to get one. What else it is given are
    options of ``load`` too.
    """
    chosen = {name: options.pop(name) for name in LOADING}

    def open_model(path: str | Path | None, **more: Any) -> Model:
        from ..hub.modelfiles import default_model
        from ..run.engine import load

        return load(default_model() if path is None else str(path), **chosen, **more)

    return open_model


def read_text(source: str | None) -> str:
    """Text of a file, or of standard input for None or ``-``, to the byte."""
    try:
        raw = sys.stdin.buffer.read() if source in (None, "-") else Path(str(source)).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise EdgeDBError(f"{source or 'standard input'}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EdgeDBError(
            f"{source or 'standard input'} is not UTF-8 text (byte {error.start})"
        ) from None
