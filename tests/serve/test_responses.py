"""Responses as the ``openai`` package has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgedb.serve.served import Served

openai = pytest.importorskip("openai")

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def ask(client: Any, **options: Any) -> Any:
    given = {"model": "tiny", "input": "Hi there", "max_output_tokens": 16, **options}
    return client.responses.create(extra_body={"seed": 5}, **given)


def solo(served: Served, messages: Any, n: int = 16) -> str:
    return served.model.chat(messages, params=served.params, max_tokens=n, seed=5).text


def test_an_answer(client: Any, served: Served) -> None:
    answer = ask(client, instructions="Be kind")
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi there"}]
    assert answer.output_text == solo(served, messages)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 16 and answer.store is False
    assert answer.instructions == "Be kind"


def test_a_stream(client: Any, served: Served) -> None:
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == solo(served, [{"role": "user", "content": "Hi there"}])
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        *("output_text.done", "content_part.done", "output_item.done"),
        "incomplete",
    ]
    assert events[-1].response.output_text == text


def test_calls_of_tools_and_their_results(client: Any) -> None:
    answer = ask(client, tools=[TOOL], tool_choice="required", max_output_tokens=400)
    call = answer.output[0]
    assert answer.status == "completed" and call.name == "weather"
    assert (answer.tool_choice, answer.tools[0].name) == ("required", "weather")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(
        ask(client, tools=[TOOL], tool_choice="required", max_output_tokens=400, stream=True)
    )
    done = next(e for e in events if e.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains"}
    items = [{"role": "user", "content": "Hi"}, call.to_dict(), result]
    assert ask(client, tools=[TOOL], input=items).status == "incomplete"


def test_a_form(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}}
    answer = ask(client, text={"format": form}, max_output_tokens=60)
    assert json.loads(answer.output_text)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": []}, "input"),
    ],
)
def test_what_there_is_not_is_refused_by_name(client: Any, options: Any, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == name
