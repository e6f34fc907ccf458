"""From a line to its record: the same on every machine, whatever else is answered beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .. import __version__
from ..choose.sampling import SamplingParams
from ..choose.settings import suggestion
from ..display import one_line, quoted
from ..errors import EdgeDBError
from ..run.completion import Completion, TokenLogprobs, collect
from ..run.engine import Model
from .lines import Line
from .order import Beginnings

_SAMPLING = tuple(field.name for field in fields(SamplingParams))
_ANSWER = (
    *("max_tokens", "stop", "stop_ids", "logprobs", "json_schema", "regex", "grammar"),
    "prompt_lookup",
)
_CHAT = ("tools", "documents", "continue_final_message", "chat_template_kwargs")


@dataclass(frozen=True)
class Defaults:
    """What holds where a line says nothing else; ``params.seed`` is the run's."""

    params: SamplingParams = field(default_factory=lambda: SamplingParams(seed=0))
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    prompt_lookup: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What became of a line: a line of the output."""

    number: int
    text: str  # JSON
    failed: bool
    tokens: int = 0  # that were written


class Cancelled(Exception):
    """The run ends before this answer does."""


def identity(model: Model, defaults: Defaults) -> dict[str, Any]:
    """All that records depend on beside their lines, as JSON."""
    options = asdict(defaults)
    del options["prompt_lookup"]  # of which the speed depends alone
    options.update(options.pop("params"))
    options["logit_bias"] = {str(k): v for k, v in options["logit_bias"].items()}
    found = {
        "edgedb": __version__,
        "model": model.file.fingerprint,
        "backend": model.ops.name,
        "context": model.context,
        "kv_dtype": model.kv_dtype,
        **options,
    }
    return dict(json.loads(json.dumps(found)))


class Answering:
    """Answers lines with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._model, self._defaults = model, defaults
        self._beginnings = Beginnings()

    def __call__(self, line: Line, cancelled: Callable[[], bool]) -> Record:
        """The record of ``line``; one of a failure if it is wrong or cannot be answered.

        Raises ``Cancelled``.
        """
        try:
            if line.error is not None:
                raise EdgeDBError(line.error)
            return self._answer(line, cancelled)
        except Cancelled:
            raise
        except EdgeDBError as error:
            return failure(line, str(error))
        except Exception as error:  # one line's, whatever it is: the others go on
            return failure(line, f"{type(error).__name__}: {error}")

    def _answer(self, line: Line, cancelled: Callable[[], bool]) -> Record:
        prompt, options = self._read(line)
        seed = options["seed"]
        with self._beginnings.reading(line.beginning, cancelled) as is_read:
            ask = self._model.chat if "messages" in line.request else self._model.generate
            chunks = ask(prompt, stream=True, cancelled=cancelled, **options)

            def watched() -> Any:
                for chunk in chunks:
                    is_read()
                    yield chunk

            found = collect(watched())
        if found.finish_reason == "cancelled":
            raise Cancelled
        record = _record(line, found, seed)
        return Record(line.number, to_json(record), False, found.stats.completion_tokens)

    def _read(self, line: Line) -> tuple[Any, dict[str, Any]]:
        """The prompt and the options of ``generate`` or ``chat``."""
        request = {name: value for name, value in line.request.items() if value is not None}
        asked = [name for name in ("prompt", "messages") if name in request]
        if len(asked) != 1:
            raise EdgeDBError("give a prompt or messages, one of them")
        known = (*_ANSWER, *_SAMPLING, *(_CHAT if asked == ["messages"] else ()))
        prompt = request.pop(asked[0])
        for name in request.keys() - set(known):
            raise EdgeDBError(f"there is no option {quoted(name)}{suggestion(name, known)}")
        if isinstance(bias := request.get("logit_bias"), Mapping):
            request["logit_bias"] = {_number(name): value for name, value in bias.items()}
        default = self._defaults
        request.setdefault("seed", line.seed(default.params.seed or 0))
        options = {name: request.pop(name) for name in _SAMPLING if name in request}
        merged: dict[str, Any] = {
            "max_tokens": default.max_tokens,
            "stop": default.stop,
            "stop_ids": default.stop_ids,
            "prompt_lookup": default.prompt_lookup,
            **request,
            "params": default.params,
            **options,
        }
        if asked == ["messages"]:
            merged.setdefault("chat_template_kwargs", default.chat_template_kwargs)
        return prompt, merged


def _number(name: str) -> Any:
    """A token id, which is a text as a key of JSON."""
    return int(name) if name.isdecimal() else name


def _record(line: Line, found: Completion, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": line.id,
        "text": found.text,
        "finish_reason": found.finish_reason,
        "seed": seed,
        "prompt_tokens": found.stats.prompt_tokens,
        "completion_tokens": found.stats.completion_tokens,
    }
    if found.logprobs is not None:
        record["logprobs"] = [_logprobs(one) for one in found.logprobs]
    return record


def _logprobs(one: TokenLogprobs) -> dict[str, Any]:
    return asdict(replace(one, top=tuple(one.top)))


def failure(line: Line, reason: str) -> Record:
    """The record of a line that was not answered."""
    record = {"id": line.id, "line": line.number, "error": one_line(reason)}
    return Record(line.number, to_json(record), True)


def to_json(record: Mapping[str, Any]) -> str:
    """One line; characters as themselves."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
