"""Tools of a request: checked, told to the model, and its calls held to their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..choose.closed_schema import closed
from ..display import quoted
from ..text.spec import TokenizerSpec
from .errors import bad_value, unsupported
from .fields import Fields
from .tool_formats import ToolFormat, format_of, instructions

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_TOOLS = 128
_MOST_CALLS = 16  # of one answer: small models like to go on
_ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    given: Mapping[str, Any]  # as the request has it, for the template


@dataclass(frozen=True)
class Toolbox:
    """What a request says of tools. ``form`` is how this model calls them."""

    tools: tuple[Tool, ...]  # those that may be called
    told: tuple[Tool, ...]  # those that the model hears of
    must_call: bool
    parallel: bool
    form: ToolFormat

    def grammar(self, schema: Mapping[str, Any] | None, thinks: bool) -> str:
        """A grammar (Lark) of answers: calls, or also other text, or JSON of ``schema``.

        ``thinks``: the prompt has begun a thought, which has to end first.
        """
        form, rules = self.form, []
        names = [f"tool_{n}" for n in range(len(self.tools))]
        begin, lead = _literal(form.begin), ""
        if not self.must_call and schema is None and form.begin:
            # Text goes on until the mark of a call; behind it there is no way but a call.
            mark = form.begin.strip()
            rest = form.begin[form.begin.index(mark) + len(mark) :]
            rules.append(f"lead[lazy]: /(.|\\n)*/ {_literal(mark)}")
            lead, begin = "lead", _literal(rest) if rest else ""
        calls = " ".join(filter(None, (lead, begin, "call", self._more(), _literal(form.end))))
        if self.must_call:
            other = ""
        elif schema is not None:
            other, rules = "json_answer | ", [*rules, f"json_answer: %json {_schema(schema)}"]
        elif form.begin:
            other, rules = "TEXT | ", [*rules, "TEXT: /(.|\\n)*/"]
        else:
            other, rules = "TEXT | ", [*rules, "TEXT: /([^{](.|\\n)*)?/"]
        start = "thought answer" if thinks and (self.must_call or schema) else "answer"
        if start != "answer":
            rules.append('thought[lazy]: /(.|\\n)*/ "</think>"')
        rules.append("call: " + " | ".join(names))
        for name, tool in zip(names, self.tools, strict=True):
            opening = f'{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
            rules.append(f"{name}: {_literal(opening)} {name}_arguments {_literal('}')}")
            rules.append(f"{name}_arguments: %json {_schema(tool.parameters)}")
        return "\n".join((f"start: {start}", f"answer: {other}{calls}", *rules))

    def _more(self) -> str:
        if not self.parallel or self.form.between is None:
            return ""
        return f"({_literal(self.form.between)} call){{0,{_MOST_CALLS - 1}}}"


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""


def _schema(schema: Mapping[str, Any]) -> str:
    plain = closed(schema)
    return json.dumps({**plain, "x-guidance": {"whitespace_pattern": r"( |\n[ \t]{0,20})?"}})


def read_tools(fields: Fields, spec: TokenizerSpec) -> Toolbox | None:
    """The ``tools``, ``tool_choice`` and ``parallel_tool_calls`` of a request."""
    listed = fields.typed("tools", list) or []
    choice = fields.take("tool_choice", "auto")
    parallel = fields.flag("parallel_tool_calls", True)
    if len(listed) > MAX_TOOLS:
        raise bad_value(f"tools: more than {MAX_TOOLS}", "tools")
    tools = tuple(_tool(item, f"tools[{n}]") for n, item in enumerate(listed))
    if len({tool.name for tool in tools}) < len(tools):
        raise bad_value("tools: two have the same name", "tools")
    if not tools:
        if choice not in ("auto", "none"):
            raise bad_value("tool_choice: there are no tools to choose from", "tool_choice")
        return None
    form = format_of(spec.chat_template)
    allowed, must_call = _chosen(choice, tools)
    return Toolbox(allowed, tools if allowed else (), must_call, parallel, form)


def _tool(item: object, where: str) -> Tool:
    tool = Fields(item, where)
    if tool.take("type", "function") != "function":
        raise unsupported(f"{where}.type", "only functions can be called")
    # OpenAI's chat has the function in a member of its own, its responses have not.
    function = tool.take("function")
    inner = Fields(function, f"{where}.function") if function is not None else tool
    name = inner.required("name", str)
    if not _NAME.fullmatch(name):
        raise bad_value(
            f"{where}: name = {quoted(name)}: expected up to 64 letters, digits, _, . and -", where
        )
    parameters = inner.typed("parameters", dict)
    inner.typed("description", str)
    inner.ignore("strict")
    given = function if function is not None else item
    assert isinstance(given, Mapping), "Fields has looked"
    plain = {key: value for key, value in given.items() if key not in ("type", "strict")}
    return Tool(name, parameters or _ANYTHING, {"type": "function", "function": plain})


def _chosen(choice: object, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], bool]:
    """The tools that may be called, and whether one must be."""
    if choice in ("auto", "none", "required"):
        return (() if choice == "none" else tools), choice == "required"
    if not isinstance(choice, Mapping):
        raise bad_value(
            f"tool_choice = {quoted(choice)}: expected none, auto, required or a function",
            "tool_choice",
        )
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        wanted = [_wanted(one) for one in inner.get("tools") or ()]
        must = inner.get("mode") == "required"
    else:
        wanted, must = [_wanted(choice)], True
    found = tuple(tool for tool in tools if tool.name in wanted)
    if not found or len(found) < len(set(wanted)):
        raise bad_value("tool_choice: it names a function that tools does not have", "tool_choice")
    return found, must


def _wanted(one: object) -> object:
    inner = one.get("function", one) if isinstance(one, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def told(messages: Sequence[Any], toolbox: Toolbox, knows_calls: bool) -> list[Any]:
    """``messages`` for a template that says nothing of tools: told in the system message, and, if
    it does not know calls and their results, those as text too."""
    found = list(messages) if knows_calls else [_as_text(one, toolbox.form) for one in messages]
    if not toolbox.told:
        return found
    said = instructions([tool.given for tool in toolbox.told], toolbox.form)
    first = found[0] if found else None
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        content = first.get("content")
        if isinstance(content, str):
            return [{**first, "content": f"{content}\n\n{said}"}, *found[1:]]
        if isinstance(content, list):
            return [{**first, "content": [*content, {"type": "text", "text": said}]}, *found[1:]]
    return [{"role": "system", "content": said}, *found]


def _as_text(message: Any, form: ToolFormat) -> Any:
    if not isinstance(message, Mapping):
        return message
    if message.get("role") == "tool":
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    written = form.write([_name_and_arguments(call) for call in calls])
    before = message.get("content")
    text = f"{before}\n{written}" if isinstance(before, str) and before else written
    return {**{k: v for k, v in message.items() if k != "tool_calls"}, "content": text}


def _name_and_arguments(call: object) -> tuple[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_value("messages: a member of tool_calls has no function with a name", "messages")
    return function["name"], function.get("arguments")


def with_objects(messages: Sequence[Any]) -> list[Any]:
    """``messages`` whose calls have arguments as objects, which templates write as JSON; OpenAI's
    clients send them as texts."""
    found = []
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if isinstance(calls, list) and calls:
            message = {**message, "tool_calls": [_with_object(call) for call in calls]}
        found.append(message)
    return found


def _with_object(call: Any) -> Any:
    arguments = _name_and_arguments(call)[1]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise bad_value("messages: the arguments of a call are no JSON", "messages") from None
    return {**call, "type": "function", "function": {**call["function"], "arguments": arguments}}
