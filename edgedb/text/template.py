"""Chat templates: the only place that renders one.

A template comes from a model file, so it is not trusted: it runs in Jinja's immutable sandbox, in
which every value, the loops and the output are bounded (``bounded_template.py``). Names and
settings follow Hugging Face transformers, for which the templates are written.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import SecurityError

from ..arguments import flag, optional
from ..errors import TemplateError
from . import bounded_filters
from .bounded_template import BoundedEnvironment, bounded_filter
from .bounds import MAX_SIZE, Budget, budget
from .messages import (
    FinalMessage,
    Message,
    Write,
    joined_where_needed,
    plain_messages,
    plain_objects,
    plain_variables,
)
from .quotation import Quoted, joined, quote, quote_message, sources
from .spec import TokenizerSpec

MAX_OUTPUT_CHARS = 1 << 24
_MAX_INDENT = 32
_MAX_DATE_PATTERN = 256


def render(
    spec: TokenizerSpec,
    messages: Iterable[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | str = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Quoted:
    """The text of a conversation as the model was trained to read it.

    Encode it with ``add_bos=False, special=True``: the template writes BOS and the special tokens.
    The text knows what it quotes of all that it is given, where special tokens are not read.
    Arguments are those of ``Model.chat_text``. Raises ``TemplateError`` if there is no template, it
    is broken, it refuses the messages, or it exceeds the bounds.
    """
    if spec.chat_template is None:
        raise TemplateError(
            "this model has no chat template; continue plain text with `edgedb generate` instead"
        )
    add_generation_prompt = optional(flag)("add_generation_prompt", add_generation_prompt)
    if not isinstance(continue_final_message, str):
        continue_final_message = flag("continue_final_message", continue_final_message)
    if add_generation_prompt and continue_final_message:
        raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message
    given = {
        **spec.special_tokens,
        **quote(plain_variables(chat_template_kwargs)),
        "tools": quote(plain_objects(tools, "tools")),
        "documents": quote(plain_objects(documents, "documents")),
        "add_generation_prompt": add_generation_prompt,
    }
    conversation = plain_messages(messages)
    started = time.thread_time()
    with _bounded_work(started):
        template = _compiled(spec.chat_template)

    def write(messages: list[dict[str, Any]]) -> str:
        quoted = [quote_message(message) for message in messages]
        with _bounded_work(started):
            return _bounded(template.generate(messages=quoted, **given), MAX_OUTPUT_CHARS)

    if continue_final_message:
        end = FinalMessage(conversation, continue_final_message)
        text = end.cut(_write(write, end.marked))
    else:
        text = _write(write, conversation)
    return Quoted(text, sources(text))


def _write(write: Write, messages: list[dict[str, Any]]) -> str:
    """The text of ``messages``, whether or not the template knows lists of parts and no content."""
    messages = joined_where_needed(write, messages)
    try:
        return write(messages)
    except TemplateError:
        if all("content" in message for message in messages):
            raise
    return write([{"content": "", **message} for message in messages])


@contextmanager
def _bounded_work(started: float) -> Iterator[None]:
    """A budget for what a template does; whatever goes wrong in it is a ``TemplateError``.

    ``started``: since when its seconds count, by ``time.thread_time``.
    """
    token = budget.set(Budget(started))
    try:
        yield
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
        budget.reset(token)


def _bounded(pieces: Iterable[str], limit: int) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > limit:
            raise TemplateError(f"chat template: more than {limit} characters")
    return joined(kept)


def _first_line(error: Exception | str) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class _Generation(Extension):
    """``{% generation %}`` marks the model's own words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models never saw in training.
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    if (len(indent) if isinstance(indent, str) else indent) > _MAX_INDENT:
        raise SecurityError(f"an indent of more than {_MAX_INDENT}")
    # Each line is indented by its depth, so the size is known only as the lines come.
    return _bounded(encoder.iterencode(value), MAX_SIZE)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(f"chat template: {_first_line(message)}")


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_DATE_PATTERN:
        raise SecurityError(f"a date pattern of more than {_MAX_DATE_PATTERN} characters")
    return datetime.datetime.now().strftime(pattern)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters.update(bounded_filters.filters())
    environment.filters["tojson"] = bounded_filter("tojson", _tojson)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.from_string(source)
