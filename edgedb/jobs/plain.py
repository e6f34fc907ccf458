"""A line in the plain form: a prompt to continue or messages to answer, with options of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..choose.sampling import SamplingParams
from ..display import quoted
from ..errors import EdgeDBError
from ..hints import suggestion
from ..run.completion import Chunk, Completion, collect
from ..run.engine import Model
from .defaults import Defaults
from .lines import Line
from .records import Record, answered

_SAMPLING = tuple(field.name for field in fields(SamplingParams))
_ANSWER = (
    *("max_tokens", "stop", "stop_ids", "logprobs", "json_schema", "regex", "grammar"),
    *("prompt_lookup", "draft_tokens"),
)
_CHAT = ("tools", "documents", "continue_final_message", "chat_template_kwargs")


class Plain:
    """Answers lines of this form with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._model, self._defaults = model, defaults

    def begin(
        self, line: Line, cancelled: Callable[[], bool]
    ) -> tuple[Iterator[Chunk], Callable[[Sequence[Chunk]], Record]]:
        """The answer to ``line``, and what makes the record of all of it.

        Raises ``EdgeDBError`` for a line that is wrong.
        """
        request = {name: value for name, value in line.request.items() if value is not None}
        asked = [name for name in ("prompt", "messages") if name in request]
        if len(asked) != 1:
            raise EdgeDBError("give a prompt or messages, one of them")
        is_chat = asked == ["messages"]
        prompt = request.pop(asked[0])
        known = (*_ANSWER, *(_CHAT if is_chat else ()), *_SAMPLING)
        options = _options(request, self._defaults, known)
        seed = options.setdefault("seed", line.seed(self._defaults.params.seed or 0))
        if is_chat:
            options.setdefault("chat_template_kwargs", self._defaults.chat_template_kwargs)
            chunks = self._model.chat(prompt, stream=True, cancelled=cancelled, **options)
        else:
            chunks = self._model.generate(prompt, stream=True, cancelled=cancelled, **options)
        return chunks, lambda answer: _record(line, seed, collect(answer))


def _record(line: Line, seed: int, found: Completion) -> Record:
    document: dict[str, Any] = {
        "text": found.text,
        "finish_reason": found.finish_reason,
        "seed": seed,
        "prompt_tokens": found.stats.prompt_tokens,
        "completion_tokens": found.stats.completion_tokens,
    }
    if found.logprobs is not None:
        document["logprobs"] = [asdict(one) for one in found.logprobs]
    return answered(line, document, found.stats.completion_tokens)


def _options(request: dict[str, Any], defaults: Defaults, known: tuple[str, ...]) -> dict[str, Any]:
    """Those of ``generate`` or ``chat``: what ``request`` does not say is the run's."""
    for name in request.keys() - set(known):
        raise EdgeDBError(f"there is no option {quoted(name)}{suggestion(name, known)}")
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
