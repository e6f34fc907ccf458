"""A line in the plain form: a prompt to continue or messages to answer, with options of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..choose.sampling import SamplingParams
from ..choose.settings import suggestion
from ..display import quoted
from ..errors import EdgeDBError
from ..run.completion import Chunk, collect
from ..run.engine import Model
from .defaults import Defaults
from .lines import Line
from .records import Record, answered

_SAMPLING = tuple(field.name for field in fields(SamplingParams))
_ANSWER = (
    *("max_tokens", "stop", "stop_ids", "logprobs", "json_schema", "regex", "grammar"),
    "prompt_lookup",
)
_CHAT = ("tools", "documents", "continue_final_message", "chat_template_kwargs")


def begin(
    model: Model, defaults: Defaults, line: Line, cancelled: Callable[[], bool]
) -> Iterator[Chunk]:
    """The answer to ``line``. Raises ``EdgeDBError`` for one that is wrong."""
    request = {name: value for name, value in line.request.items() if value is not None}
    asked = [name for name in ("prompt", "messages") if name in request]
    if len(asked) != 1:
        raise EdgeDBError("give a prompt or messages, one of them")
    is_chat = asked == ["messages"]
    prompt = request.pop(asked[0])
    options = _options(request, defaults, (*_ANSWER, *(_CHAT if is_chat else ())))
    options["seed"] = _seed(line, defaults)
    if not is_chat:
        return model.generate(prompt, stream=True, cancelled=cancelled, **options)
    options.setdefault("chat_template_kwargs", defaults.chat_template_kwargs)
    return model.chat(prompt, stream=True, cancelled=cancelled, **options)


def record(line: Line, defaults: Defaults, chunks: Sequence[Chunk]) -> Record:
    """What ``chunks``, the whole answer to ``line``, say."""
    found = collect(chunks)
    document: dict[str, Any] = {
        "text": found.text,
        "finish_reason": found.finish_reason,
        "seed": _seed(line, defaults),
        "prompt_tokens": found.stats.prompt_tokens,
        "completion_tokens": found.stats.completion_tokens,
    }
    if found.logprobs is not None:
        document["logprobs"] = [asdict(one) for one in found.logprobs]
    return answered(line, document, found.stats.completion_tokens)


def _seed(line: Line, defaults: Defaults) -> Any:
    own = line.request.get("seed")
    return line.seed(defaults.params.seed or 0) if own is None else own


def _options(request: dict[str, Any], defaults: Defaults, known: tuple[str, ...]) -> dict[str, Any]:
    """Those of ``generate`` or ``chat``: what ``request`` does not say is the run's."""
    for name in request.keys() - {*known, *_SAMPLING}:
        raise EdgeDBError(
            f"there is no option {quoted(name)}{suggestion(name, (*known, *_SAMPLING))}"
        )
    if isinstance(bias := request.get("logit_bias"), Mapping):
        request["logit_bias"] = {_token(name): value for name, value in bias.items()}
    return {
        "params": defaults.params,
        "max_tokens": defaults.max_tokens,
        "stop": defaults.stop,
        "stop_ids": defaults.stop_ids,
        "prompt_lookup": defaults.prompt_lookup,
        **request,
    }


def _token(name: str) -> Any:
    """A token id, which is a text as a key of JSON."""
    return int(name) if name.isdecimal() else name
