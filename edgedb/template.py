"""Chat templates: the only place that renders one.

A template comes from a model file, so it is not trusted: it runs in Jinja's immutable sandbox, and
its loops and its output are bounded. Names and settings follow Hugging Face transformers, for
which the templates are written.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from .errors import TemplateError
from .tokenizer import TokenizerSpec

MAX_OUTPUT_CHARS = 1 << 24
MAX_LOOP_STEPS = 1_000_000
MAX_REPEATED = 1 << 16  # characters or items that `*` may make
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")

_steps_left: ContextVar[int] = ContextVar("_steps_left", default=MAX_LOOP_STEPS)


def render(
    spec: TokenizerSpec,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation as the model was trained to read it.

    Encode it with ``add_bos=False, special=True``: the template writes BOS and the special tokens.
    ``add_generation_prompt`` ends the text where the model's answer begins. Raises
    ``TemplateError`` if there is no template, it is broken, it refuses the messages, or it exceeds
    the bounds.
    """
    if spec.chat_template is None:
        raise TemplateError(
            "this model has no chat template; continue plain text with `edgedb generate` instead"
        )
    _check_messages(messages)
    token = _steps_left.set(MAX_LOOP_STEPS)
    try:
        template = _compiled(spec.chat_template)
        stream = template.generate(
            **spec.special_tokens,
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
        return _bounded(stream)
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template, line {error.lineno}: {_first_line(error)}") from None
    except SecurityError as error:
        raise TemplateError(f"chat template: not allowed: {_first_line(error)}") from None
    except jinja2.TemplateError as error:
        raise TemplateError(f"chat template: {_first_line(error)}") from None
    except RecursionError:
        raise TemplateError("chat template: nested too deeply") from None
    except Exception as error:  # a template can make any built-in operation fail
        name = type(error).__name__
        raise TemplateError(f"chat template: {name}: {_first_line(error)}") from None
    finally:
        _steps_left.reset(token)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TemplateError(f"message {number}: expected a dictionary with role and content")
        if not isinstance(message.get("content"), str):
            raise TemplateError(f"message {number}: content must be a string")


def _bounded(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT_CHARS:
            raise TemplateError(f"chat template: more than {MAX_OUTPUT_CHARS} characters")
    return "".join(kept)


def _first_line(error: Exception | str) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _counted(items: Any) -> Iterator[Any]:
    """Iterate ``items`` and take one step of the rendering's budget for each."""
    for item in items:
        left = _steps_left.get() - 1
        if left < 0:
            raise TemplateError(f"chat template: more than {MAX_LOOP_STEPS} loop steps")
        _steps_left.set(left)
        yield item


def _repeated_size(left: Any, right: Any) -> int:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
            return len(sequence) * times
    return 0


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the operator **")
        if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise SecurityError("a format with a width of more than 4 digits")
        if operator == "*" and _repeated_size(left, right) > MAX_REPEATED:
            raise SecurityError(f"more than {MAX_REPEATED} repetitions")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree


class _Generation(Extension):
    """``{% generation %}`` marks the model's own words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML characters, which models never saw in training.
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(f"chat template: {_first_line(message)}")


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    filters: dict[str, Callable[..., Any]] = {"tojson": _tojson, "_counted": _counted}
    environment.filters.update(filters)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.from_string(source)
