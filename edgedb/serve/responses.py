"""OpenAI's responses, without state: what is read of a body, in the words of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..display import quoted
from .asked import Asked
from .conversation import converse
from .errors import bad_value, unsupported
from .fields import Fields
from .options import only_one_form, read_form, read_max_tokens, read_own_forms, read_request
from .responses_reply import ResponseReply
from .served import Served
from .tools import read_tools

_HARMLESS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "include", "max_tool_calls", "stream_options"),
)
# What an answer says again of its request.
_REPEATED = ("instructions", "tools", "tool_choice", "parallel_tool_calls", "metadata", "text")
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def read_response(served: Served, body: object) -> tuple[Asked, ResponseReply]:
    """Raises ``Refused`` or another ``EdgeDBError`` for what cannot be answered."""
    fields = Fields(body)
    said = {name: body.get(name) for name in _REPEATED} if isinstance(body, Mapping) else {}
    served.check_name(fields.take("model"))
    for name in ("previous_response_id", "conversation", "prompt"):
        if fields.take(name) is not None:
            raise unsupported(name, "this server keeps nothing; send the whole conversation")
    fields.refuse("background")
    if fields.choice("truncation", ("disabled", "auto"), "disabled") == "auto":
        raise unsupported("truncation", "nothing is cut here; send what fits")
    messages = _messages(fields.take("input"))
    instructions = fields.typed("instructions", str)
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    toolbox = read_tools(fields, served.model.tokenizer_spec)
    text = Fields(fields.take("text") or {}, "text")
    form = only_one_form(read_form(text, "format"), read_own_forms(fields))
    text.refuse("verbosity", unless=("medium",))
    text.finish()
    variables = dict(fields.typed("chat_template_kwargs", dict) or {})
    reasoning = Fields(fields.take("reasoning") or {}, "reasoning")
    effort = reasoning.typed("effort", str)
    reasoning.ignore("summary", "generate_summary")
    reasoning.finish()
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        variables.setdefault("enable_thinking", effort != "none")
    conversation = converse(served, messages, toolbox, variables=variables)
    if toolbox is not None and toolbox.tools:
        if form.keys() - {"json_schema"}:
            raise bad_value("tools: they do not go together with regex or grammar", "tools")
        form = {"grammar": toolbox.grammar(form.get("json_schema"), conversation.thinks is True)}
    top = fields.typed("top_logprobs", int)
    most = read_max_tokens(fields, served, "max_output_tokens")
    request = read_request(fields, served, most, form, logprobs=top)
    stream = fields.flag("stream")
    fields.ignore(*_HARMLESS)
    fields.finish()
    asked = Asked((conversation.ids,), request, 1, stream)
    asked.check(served)
    return asked, ResponseReply(served, asked, conversation, said)


def _messages(given: Any) -> list[dict[str, Any]]:
    """The items of ``input`` as messages of a chat."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise bad_value(f"input = {quoted(given)}: expected a text or a list of items", "input")
    found: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if not isinstance(item, Mapping):
            raise bad_value(f"{where}: expected an object", where)
        kind = item.get("type") or "message"
        if kind == "message":
            found.append({"role": item.get("role"), "content": _text(item.get("content"), where)})
        elif kind == "function_call":
            _add_call(found, item)
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else _text(output, where)
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":  # which no template wants back
            raise unsupported(f"{where}.type", f"{quoted(kind)} is not supported")
    return found


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Calls that follow each other are one message's."""
    function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    if messages and messages[-1].get("role") == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _text(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise bad_value(f"{where}: content must be a text or a list of parts", where)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "refusal":
            parts.append({"type": "text", "text": part.get("refusal")})
        elif kind in _TEXT_PARTS and isinstance(part, Mapping):
            parts.append({"type": "text", "text": part.get("text")})
        else:
            raise unsupported(f"{where}.content", f"a part of type {quoted(kind)}: text only")
    return parts
