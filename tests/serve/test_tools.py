"""Calls of tools: always of a tool that there is, with arguments of its schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from edgedb.serve.served import Served
from edgedb.serve.tool_formats import FORMATS, format_of
from edgedb.serve.tools import Tool, Toolbox

HI = [{"role": "user", "content": "Hi there"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
NUMBER = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": CITY, "square": NUMBER}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


def ask(client: Any, **options: Any) -> Any:
    given = {"model": "tiny", "messages": HI, "max_tokens": 400, "seed": 5, "tools": TOOLS}
    return client.chat.completions.create(**{**given, **options})


def check(calls: Any) -> None:
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_is_required(client: Any, seed: int) -> None:
    choice = ask(client, tool_choice="required", seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    check(choice.message.tool_calls)
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)


def test_a_named_tool_and_one_call(client: Any) -> None:
    named = {"type": "function", "function": {"name": "square"}}
    for seed in range(3):
        message = (
            ask(client, tool_choice=named, parallel_tool_calls=False, seed=seed).choices[0].message
        )
        assert [call.function.name for call in message.tool_calls] == ["square"]


def test_calls_in_a_stream_are_those_of_the_whole(client: Any) -> None:
    whole = ask(client, tool_choice="required").choices[0].message.tool_calls
    streamed: list[Any] = []
    for chunk in ask(client, tool_choice="required", stream=True):
        streamed += chunk.choices[0].delta.tool_calls or []
    assert [one.index for one in streamed] == list(range(len(whole)))
    assert [one.function for one in streamed] == [one.function for one in whole] or [
        (one.function.name, one.function.arguments) for one in streamed
    ] == [(one.function.name, one.function.arguments) for one in whole]
    assert chunk.choices[0].finish_reason == "tool_calls"


def test_a_call_that_is_cut_is_none(client: Any) -> None:
    choice = ask(client, tool_choice="required", max_tokens=3).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls


def test_no_call_where_none_is_wanted(client: Any, served: Served) -> None:
    choice = ask(client, tool_choice="none", max_tokens=12).choices[0]
    assert not choice.message.tool_calls
    own = served.model.chat(HI, params=served.params, max_tokens=12, seed=5)
    assert choice.message.content == own.text


def test_an_answer_may_be_text(client: Any) -> None:
    choice = ask(client, max_tokens=12).choices[0]
    assert choice.message.content and not choice.message.tool_calls


def test_calls_and_results_go_back_to_the_model(client: Any, http: Any) -> None:
    message = ask(client, tool_choice="required").choices[0].message
    call = message.tool_calls[0]
    messages = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "It rains"}]
    answer = ask(client, messages=messages, max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    body = {"messages": [m if isinstance(m, dict) else m.to_dict() for m in messages]}
    text = http.post("/apply-template", json={**body, "tools": TOOLS}).json()["prompt"]
    assert "It rains" in text and f'"name": "{call.function.name}"' in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "name"),
        ({"tools": TOOLS + TOOLS}, "same name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_called_is_refused(client: Any, options: Any, words: str) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert words in caught.value.body["message"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.mark)
@pytest.mark.parametrize("must_call", [True, False])
def test_grammars_take_calls_and_nothing_half(served: Served, form: Any, must_call: bool) -> None:
    from edgedb.choose.grammar import Grammar

    tools = tuple(Tool(name, schema, {}) for name, schema in SCHEMAS.items())
    source = Toolbox(tools, tools, must_call, True, form).grammar(None, False)

    def taken(text: str) -> bool:
        matcher = Grammar("grammar", source).parser(served.model)._matcher
        ids = served.model.tokenizer.encode(text, add_bos=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    call = form.write([("weather", {"city": "Rome"})])
    assert taken(call)
    assert not taken(call.replace("Rome", "Bonn"))
    assert not taken(call[:-1])
    assert taken("Hello") is not must_call
    if form.between is not None:
        assert taken(form.write([("weather", {"city": "Rome"}), ("square", {"n": 2})]))
        assert taken("Well. " + call) is not must_call


def test_formats_are_known_by_their_templates() -> None:
    assert format_of("... [TOOL_CALLS] ...").begin == "[TOOL_CALLS]["
    assert format_of(None).begin == format_of("<tool_call>").begin == "<tool_call>\n"
