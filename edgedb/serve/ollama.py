"""Ollama's chat and generate: from a body to what is asked of the engine, and back."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from typing import Any

from ..choose.closed_schema import closed
from ..display import quoted
from ..run.completion import Chunk
from .asked import Asked
from .chat import logprobs_entry, read_logprobs
from .conversation import Conversation, converse
from .errors import bad_value, unsupported
from .fields import Fields
from .options import read_request
from .prompts import text_ids
from .served import Served
from .speech import Call, Speech
from .tools import read_tools
from .usage import Usage

# Options of Ollama that are about another engine's insides.
_HARMLESS = (
    *("num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "use_mmap"),
    *("use_mlock", "vocab_only", "low_vram", "f16_kv", "penalize_newline", "tfs_z"),
)


def read_chat(served: Served, body: object) -> tuple[Asked | Nothing, Any]:
    """``/api/chat``. Raises ``EdgeDBError`` for what cannot be answered."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    messages = fields.typed("messages", list) or []
    stream = fields.flag("stream", True)
    fields.ignore("keep_alive")
    if not messages:
        return Nothing(stream), NoReply(served, "message")
    toolbox = read_tools(fields, served.model.tokenizer_spec)
    messages = [_message(one, number) for number, one in enumerate(messages, 1)]
    variables, reasons = _thinking(fields)
    conversation = converse(served, messages, toolbox, variables=variables, reasons=reasons)
    form = _form(fields)
    if toolbox is not None and toolbox.tools:
        grammar = toolbox.grammar(form.get("json_schema"), conversation.thinks is True)
        form = {"grammar": grammar}
    return _asked(fields, served, conversation, form, stream, "message")


def read_generate(served: Served, body: object) -> tuple[Asked | Nothing, Any]:
    """``/api/generate``: a question of one message, or with ``raw`` a text to go on with."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    prompt, raw = fields.typed("prompt", str) or "", fields.flag("raw")
    system, stream = fields.typed("system", str), fields.flag("stream", True)
    fields.ignore("keep_alive")
    fields.refuse("suffix", "template", "context", "images")
    if not prompt:
        return Nothing(stream), NoReply(served, "response")
    variables, reasons = _thinking(fields)
    if raw or served.model.tokenizer_spec.chat_template is None:
        ids = text_ids(served, f"{system}\n\n{prompt}" if system and not raw else prompt, raw)
        conversation = Conversation(ids, prompt, None, False)
    else:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        conversation = converse(served, messages, variables=variables, reasons=reasons)
    return _asked(fields, served, conversation, _form(fields), stream, "response")


def _message(message: Any, number: int) -> Any:
    if isinstance(message, Mapping) and message.get("images"):
        raise unsupported("images", f"message {number}: this model reads text only")
    if isinstance(message, Mapping):
        return {key: value for key, value in message.items() if key != "images"}
    return message


def _thinking(fields: Fields) -> tuple[dict[str, Any], bool]:
    """Variables for the template, and whether thoughts are told apart."""
    think = fields.take("think")
    if think is None:
        return {}, True
    if isinstance(think, bool):
        return {"enable_thinking": think}, True
    if think in ("low", "medium", "high"):
        return {"enable_thinking": True, "reasoning_effort": think}, True
    raise bad_value(f"think = {quoted(think)}: expected true, false, low, medium or high", "think")


def _form(fields: Fields) -> dict[str, Any]:
    form = fields.take("format")
    if form is None or form == "":
        return {}
    if form == "json":
        return {"json_schema": {"type": "object"}}
    if isinstance(form, Mapping):
        return {"json_schema": closed(form)}
    raise bad_value(f"format = {quoted(form)}: expected json or a JSON schema", "format")


def _asked(
    fields: Fields,
    served: Served,
    conversation: Conversation,
    form: Mapping[str, Any],
    stream: bool,
    member: str,
) -> tuple[Asked, OllamaReply]:
    options = Fields(fields.take("options") or {}, "options")
    logprobs = read_logprobs(fields)
    context = options.typed("num_ctx", int)
    if context is not None and context > served.model.context:
        raise bad_value(
            f"options.num_ctx = {context}: the context is {served.model.context} here; serve with "
            "--context to have more",
            "options.num_ctx",
        )
    most = options.typed("num_predict", int)
    if most is None:
        most = served.max_tokens
    # As Ollama has it: a wish, which the context bounds.
    room = served.model.context - len(conversation.ids)
    limit = None if most is None or most < 0 else min(most, max(room, 0))
    options.ignore(*_HARMLESS)
    request = read_request(options, served, limit, form, logprobs=logprobs)
    options.finish()
    fields.finish()
    asked = Asked((conversation.ids,), request, 1, stream)
    asked.check(served)
    return asked, OllamaReply(served, asked, conversation, member)


class Nothing:
    """A request that only wants the model to be there."""

    answers = 1

    def __init__(self, stream: bool) -> None:
        self.stream, self.progress = stream, False

    def chunks(self, *_: Any) -> Any:
        return iter(())


class NoReply:
    """The answer to that."""

    def __init__(self, served: Served, member: str) -> None:
        empty: Any = {"role": "assistant", "content": ""} if member == "message" else ""
        self._document = {
            "model": served.name,
            "created_at": now(),
            member: empty,
            "done": True,
            "done_reason": "load",
        }

    def begin(self) -> list[Any]:
        return []

    def reading(self, done: int, total: int) -> list[Any]:
        return []

    def push(self, chunk: Any) -> list[Any]:
        return []

    def finish(self) -> list[Any]:
        return [self._document]

    def document(self) -> Any:
        return self._document


class OllamaReply:
    """A ``Reply`` whose events are lines; ``member`` is where the text is."""

    def __init__(
        self, served: Served, asked: Asked, conversation: Conversation, member: str
    ) -> None:
        self._served, self._asked, self._member = served, asked, member
        self._speech: Speech = conversation.speech(served)
        self._started = time.perf_counter()
        self.usage = Usage()
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._reason = "stop"

    def begin(self) -> list[Any]:
        self._started = time.perf_counter()
        return []

    def reading(self, done: int, total: int) -> list[Any]:
        return []

    def push(self, chunk: Chunk) -> list[Any]:
        self.usage.of[0] = chunk.stats
        events, new = [], []
        if chunk.logprobs is not None:
            new.append(logprobs_entry(chunk.logprobs, self._served))
            self._logprobs += new
        for piece in self._speech.push(chunk):
            if isinstance(piece, Call):
                arguments = json.loads(piece.arguments)
                function = {"name": piece.name, "arguments": arguments}
                self._calls.append({"id": piece.id, "function": function})
                events.append(self._event("", "", self._calls[-1:]))
            elif piece.kind == "reasoning":
                self._thinking.append(piece.text)
                events.append(self._event("", piece.text, []))
            else:
                self._content.append(piece.text)
                events.append(self._event(piece.text, "", []))
        if new and self._asked.stream:
            events = events or [self._event("", "", [])]
            events[0]["logprobs"] = new
        if chunk.finish_reason == "length":
            self._reason = "length"
        return events

    def finish(self) -> list[Any]:
        return [{**self._event("", "", []), **self._end()}]

    def document(self) -> Any:
        event = self._event("".join(self._content), "".join(self._thinking), self._calls)
        if self._asked.request.logprobs is not None:
            event["logprobs"] = self._logprobs
        return {**event, **self._end()}

    def _event(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"model": self._served.name, "created_at": now()}
        if self._member == "response":
            more = {"thinking": thinking} if thinking else {}
            return {**head, "response": text, **more, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {**head, "message": message, "done": False}

    def _end(self) -> dict[str, Any]:
        stats = self.usage.of.get(0)
        assert stats is not None, "an answer has at least its last chunk"
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": int(1e9 * (time.perf_counter() - self._started)),
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": int(1e9 * stats.prompt_seconds),
            "eval_count": stats.completion_tokens,
            "eval_duration": int(1e9 * stats.decode_seconds),
        }


def now() -> str:
    """This moment, as Ollama writes it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
