"""OpenAI's chat completions: from a body to what is asked of the engine, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..run.completion import Chunk, TokenLogprobs
from .asked import Asked
from .choices import Answer, Choices
from .conversation import Conversation, converse
from .errors import bad_value
from .fields import Fields
from .options import only_one_form, read_form, read_max_tokens, read_own_forms, read_request
from .served import Served
from .speech import Call, Said, Speech
from .tools import read_tools
from .usage import timings

# What clients send and what changes nothing here.
HARMLESS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "cache_prompt", "timings_per_token", "id_slot", "n_keep"),
)
_MOST_LOGPROBS = 20


def read_chat(served: Served, body: object) -> tuple[Asked, ChatReply]:
    """Raises ``Refused`` or another ``EdgeDBError`` for what cannot be answered."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    messages = fields.required("messages", list)
    toolbox = read_tools(fields, served.model.tokenizer_spec)
    form = only_one_form(read_form(fields), read_own_forms(fields))
    variables = dict(fields.typed("chat_template_kwargs", dict) or {})
    effort = fields.typed("reasoning_effort", str)
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
    reasoning = fields.choice("reasoning_format", ("auto", "none", "deepseek"), "auto")
    conversation = converse(
        served,
        messages,
        toolbox,
        variables=variables,
        documents=fields.typed("documents", list),
        continued=fields.flag("continue_final_message"),
        reasons=reasoning != "none",
    )
    schema = form.get("json_schema")
    if toolbox is not None and toolbox.tools:
        if form.keys() - {"json_schema"}:
            raise bad_value("tools: they do not go together with regex or grammar", "tools")
        form = {"grammar": toolbox.grammar(schema, conversation.thinks is True)}
    n = read_count(fields)
    request = read_request(
        fields,
        served,
        read_max_tokens(fields, served, "max_completion_tokens", "max_tokens", "n_predict"),
        form,
        logprobs=read_logprobs(fields),
    )
    stream, include_usage, progress = read_stream(fields)
    fields.ignore(*HARMLESS)
    fields.refuse("audio", "prediction", "web_search_options", "functions", "function_call")
    fields.refuse("modalities", unless=(["text"],))
    fields.refuse("verbosity", unless=("medium",))
    fields.refuse("ignore_eos", "add_generation_prompt", unless=(True,))
    fields.finish()
    asked = Asked((conversation.ids,), request, n, stream, progress)
    asked.check(served)
    return asked, ChatReply(served, asked, conversation, include_usage)


def read_count(fields: Fields) -> int:
    """``n``: how many answers to each prompt."""
    n = fields.typed("n", int, 1)
    if n is None or n < 1:
        raise bad_value(f"n = {n}: expected a whole number of at least 1", "n")
    return n


def read_stream(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, to end with the usage, and to tell how far the prompt is read."""
    stream = fields.flag("stream")
    options = Fields(fields.take("stream_options") or {}, "stream_options")
    include_usage = options.flag("include_usage")
    options.ignore("include_obfuscation")
    options.finish()
    progress = fields.flag("return_progress")
    return stream, include_usage and stream, progress and stream


def read_logprobs(fields: Fields) -> int | None:
    """How many likely tokens to tell for each place, or None."""
    wanted, top = fields.flag("logprobs"), fields.typed("top_logprobs", int)
    check_likely("top_logprobs", top)
    if top and not wanted:
        raise bad_value("top_logprobs: it needs logprobs", "top_logprobs")
    return (top or 0) if wanted else None


def check_likely(name: str, number: int | None) -> None:
    """Raises ``Refused`` for more likely tokens than are told."""
    if number is not None and not 0 <= number <= _MOST_LOGPROBS:
        raise bad_value(
            f"{name} = {number}: expected a whole number from 0 to {_MOST_LOGPROBS}", name
        )


@dataclass
class _Answer(Answer):
    speech: Speech
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ChatReply(Choices[_Answer]):
    """A ``Reply`` as chat completions have it."""

    def __init__(
        self, served: Served, asked: Asked, conversation: Conversation, include_usage: bool
    ) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        super().__init__(served, asked, include_usage, "chatcmpl", kind)
        self._conversation = conversation

    def _answer(self, index: int, events: list[Any]) -> _Answer:
        """The answer ``index``; if it begins, so do its events."""
        answer = self.answers.get(index)
        if answer is None:
            answer = self.answers[index] = _Answer(self._conversation.speech(self._served))
            if self._asked.stream:
                events.append(self._delta(index, {"role": "assistant", "content": ""}))
        return answer

    def begin(self) -> list[Any]:
        events: list[Any] = []
        self._answer(0, events)
        return events

    def reading(self, done: int, total: int) -> list[Any]:
        return self._progress(self._delta(0, {}), done, total)

    def push(self, chunk: Chunk) -> list[Any]:
        events: list[Any] = []
        answer = self._answer(chunk.index, events)
        self.usage.of[chunk.index] = chunk.stats
        said = answer.speech.push(chunk)
        if chunk.logprobs is not None:
            answer.logprobs.append(logprobs_entry(chunk.logprobs, self._served))
        for piece in said:
            delta = self._keep(answer, piece)
            if self._asked.stream:
                events.append(self._delta(chunk.index, delta, answer))
        if chunk.finish_reason is not None:
            answer.reason = _reason(chunk, answer.speech)
            answer.timings = timings(chunk.stats)
            if self._asked.stream:
                event = self._delta(chunk.index, {}, answer, answer.reason)
                events.append(self._last(event, chunk.index, answer))
        return events

    def _keep(self, answer: _Answer, piece: Said | Call) -> dict[str, Any]:
        """Note ``piece`` and write it as a delta."""
        if isinstance(piece, Call):
            call = {
                "id": piece.id,
                "type": "function",
                "function": {"name": piece.name, "arguments": piece.arguments},
            }
            answer.calls.append(call)
            return {"tool_calls": [{"index": len(answer.calls) - 1, **call}]}
        if piece.kind == "reasoning":
            answer.reasoning.append(piece.text)
            return {"reasoning_content": piece.text}
        answer.content.append(piece.text)
        return {"content": piece.text}

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        answer: _Answer | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None}
        if answer is not None and answer.logprobs:  # also of tokens whose text was held back
            choice["logprobs"] = {"content": answer.logprobs, "refusal": None}
            answer.logprobs = []
        choice["finish_reason"] = reason
        return self._event(choice)

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        content = "".join(answer.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if answer.calls and not content else content,
            "refusal": None,
        }
        if answer.reasoning:
            message["reasoning_content"] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = answer.calls
        asked = self._asked.request.logprobs is not None
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": answer.logprobs, "refusal": None} if asked else None,
            "finish_reason": answer.reason,
        }


def _reason(chunk: Chunk, speech: Speech) -> str:
    if chunk.finish_reason == "length":
        return "length"
    return "tool_calls" if speech.calls else "stop"


def logprobs_entry(found: TokenLogprobs, served: Served) -> dict[str, Any]:
    """A token with its probability and the likely ones, as chats and responses have it."""

    def entry(token: int, text: str, logprob: float) -> dict[str, Any]:
        data = served.model.tokenizer.token_bytes(token, False)
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    return {
        **entry(found.token, found.text, found.logprob),
        "top_logprobs": [entry(one.token, one.text, one.logprob) for one in found.top],
    }
