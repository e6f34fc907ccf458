"""Chats as the ``openai`` package has them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from edgedb.serve.served import Served

openai = pytest.importorskip("openai")

HI = [{"role": "user", "content": "Hi there"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "n": {"type": "integer"}},
    "required": ["city", "n"],
    "additionalProperties": False,
}


def solo(served: Served, messages: Any = HI, **options: Any) -> str:
    """What the model answers by itself."""
    return served.model.chat(messages, params=served.params, **options).text


def ask(client: Any, **options: Any) -> Any:
    given = {"model": "tiny", "messages": HI, "max_tokens": 12, "seed": 5, **options}
    return client.chat.completions.create(**given)


def test_an_answer_is_the_models_own(client: Any, served: Served) -> None:
    answer = ask(client)
    choice = answer.choices[0]
    assert choice.message.content == solo(served, max_tokens=12, seed=5)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.model_extra["timings"]["predicted_n"] == 12


def test_a_stream_has_the_events_that_clients_expect(client: Any, served: Served) -> None:
    stream = ask(client, stream=True, stream_options={"include_usage": True})
    first, *middle, last, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == solo(served, max_tokens=12, seed=5)
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("length", None)
    assert (usage.choices, usage.usage.completion_tokens) == ([], 12)


def test_the_events_of_a_stream_on_the_wire(http: Any) -> None:
    body = {"messages": HI, "max_tokens": 2, "stream": True, "return_progress": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    found = [json.loads(event) for event in events[:-1]]
    progress = [event["prompt_progress"] for event in found if "prompt_progress" in event]
    assert progress[-1]["processed"] == progress[-1]["total"] > 2
    assert found[-1]["choices"][0]["delta"] == {} and "usage" not in found[-1]


def test_several_answers_have_seeds_of_their_own(client: Any, served: Served) -> None:
    answer = ask(client, n=3)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [solo(served, max_tokens=12, seed=5 + i) for i in range(3)]
    assert answer.usage.completion_tokens == 36
    found: dict[int, str] = {}
    for chunk in ask(client, n=3, stream=True):
        choice = chunk.choices[0]
        found[choice.index] = found.get(choice.index, "") + (choice.delta.content or "")
    assert [found[i] for i in range(3)] == texts


def test_the_seed_of_an_answer_repeats_it(client: Any) -> None:
    first = ask(client, seed=None)
    again = ask(client, seed=first.model_extra["seed"])
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.system_fingerprint == first.system_fingerprint


def test_stop_and_penalties(client: Any, served: Served) -> None:
    text = solo(served, max_tokens=12, seed=5)
    stop = text[3:5]
    choice = ask(client, stop=[stop]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")
    options = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {"7": -100}}
    found = ask(client, **options, extra_body={"repeat_penalty": 1.3}).choices[0].message.content
    own = {**options, "logit_bias": {7: -100.0}, "repetition_penalty": 1.3}
    assert found == solo(served, max_tokens=12, seed=5, **own)


def test_logprobs(client: Any, served: Served) -> None:
    own = served.model.chat(HI, params=served.params, max_tokens=5, seed=5, logprobs=2)
    told = ask(client, max_tokens=5, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert own.logprobs is not None
    assert [one.logprob for one in told] == [one.logprob for one in own.logprobs]
    assert [len(one.top_logprobs) for one in told] == [2] * 5
    streamed: list[Any] = []
    for chunk in ask(client, max_tokens=5, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == told


def test_parts_of_text_and_what_was_read_before(client: Any, served: Served) -> None:
    long = "What we said before. " * 30
    parts = [{"role": "user", "content": [{"type": "text", "text": long}]}]
    ask(client, messages=parts)
    again = ask(client, messages=[{"role": "user", "content": long}])
    details = again.usage.prompt_tokens_details
    assert details.cached_tokens >= again.usage.prompt_tokens - 2


def test_a_schema_holds(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = ask(client, response_format=form, max_tokens=100)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"extra_body": {"tempature": 1}}, "did you mean temperature"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"n": 0}, "n = 0"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nothing"}},
                }
            },
            "json_schema",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "text parts only",
        ),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(client: Any, options: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert words in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError):  # a stream too, before it begins
        ask(client, stream=True, **options)


@pytest.mark.parametrize("more", [{"messages": [{"role": "user", "content": "x " * 3000}]}, {}])
def test_what_does_not_fit_is_refused(client: Any, more: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"max_tokens": 2048, **more})
    assert caught.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found"
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
