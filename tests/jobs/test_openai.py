"""Lines in OpenAI's form of a batch: answered as the server answers, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgedb
from edgedb.jobs.answering import Answering
from edgedb.jobs.defaults import Defaults
from edgedb.jobs.lines import parse_line
from edgedb.jobs.openai import _settled

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, backend="numpy")


def answer(model: edgedb.Model, body: Any, url: str = "/v1/chat/completions") -> dict[str, Any]:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    answering = Answering(model, Defaults(max_tokens=6))
    records = [answering(parse_line(1, json.dumps(line)), lambda: False) for _ in range(2)]
    assert records[0] == records[1]  # although the second one has less to read
    found = json.loads(records[0].text)
    assert found["custom_id"] == "a"
    assert records[0].failed == (found["response"]["status_code"] != 200)
    return dict(found["response"])


def test_a_chat(model: edgedb.Model) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 4, "logprobs": True}
    response = answer(model, body)
    assert response["status_code"] == 200
    document = response["body"]
    seed = parse_line(1, '{"id": "a"}').seed(0)
    expected = model.chat(MESSAGES, max_tokens=4, seed=seed)
    assert document["object"] == "chat.completion" and document["seed"] == seed
    choice = document["choices"][0]
    assert choice["message"]["content"] == expected.text
    assert len(choice["logprobs"]["content"]) == 4
    assert document["usage"]["completion_tokens"] == 4
    assert not {"timings"} & document.keys() and document["created"] == 0
    assert answer(model, body | {"seed": 5})["body"]["seed"] == 5
    assert answer(model, {"messages": MESSAGES})["body"]["usage"]["completion_tokens"] == 6
    # The run's length is no reason to refuse what fits.
    long = Answering(model, Defaults(max_tokens=1 << 20))
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    record = long(parse_line(1, json.dumps(line | {"body": {"messages": MESSAGES}})), lambda: False)
    assert not record.failed and record.tokens > 6


@pytest.mark.parametrize(
    ("body", "status", "fault"),
    [
        ({}, 400, "messages is missing"),
        ({"messages": MESSAGES, "model": "gpt-9"}, 404, "there is no model 'gpt-9' here"),
        ({"messages": MESSAGES, "stream": True}, 400, "a batch has no streams"),
        ({"messages": MESSAGES, "temprature": 1}, 400, "temprature"),
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, 400, "context"),
    ],
)
def test_what_a_server_would_refuse(
    model: edgedb.Model, body: dict[str, Any], status: int, fault: str
) -> None:
    response = answer(model, body)
    assert response["status_code"] == status
    assert fault in response["body"]["error"]["message"]


def test_a_url_that_there_is_not(model: edgedb.Model) -> None:
    response = answer(model, {"prompt": "x"}, "/v2/chat")
    assert response["status_code"] == 404
    message = response["body"]["error"]["message"]
    assert message.startswith("url = '/v2/chat': expected /v1/chat/completions")


def test_any_fault_is_one_line_s(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("gone")

    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"messages": MESSAGES}  # type: ignore[assignment]
    answering = Answering(model, Defaults())
    monkeypatch.setattr(edgedb.Session, "start", broken)
    record = answering(parse_line(4, json.dumps(line)), lambda: False)
    error = {"code": "failed", "message": "MemoryError: gone", "line": 4}
    assert record.failed and json.loads(record.text)["error"] == error


def test_the_model_has_other_names(model: edgedb.Model) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": "gpt-9", "messages": MESSAGES, "max_tokens": 1}  # type: ignore[assignment]
    answering = Answering(model, Defaults(aliases=("gpt-9",)))
    record = json.loads(answering(parse_line(1, json.dumps(line)), lambda: False).text)
    assert record["response"]["body"]["model"] == "gpt-9"


@pytest.mark.parametrize(
    ("url", "body", "text"),
    [
        (
            "/v1/completions",
            {"prompt": ["Hi", "Once"], "max_tokens": 3, "n": 2, "echo": True},
            lambda body: [choice["text"][:2] for choice in body["choices"]],
        ),
        (
            "/v1/embeddings",
            {"input": ["Hi", "Once"]},
            lambda body: [len(one["embedding"]) for one in body["data"]],
        ),
        (
            "/v1/responses",
            {"input": "Hi", "max_output_tokens": 3},
            lambda body: [item["type"] for item in body["output"]],
        ),
    ],
)
def test_other_routes(model: edgedb.Model, url: str, body: Any, text: Any) -> None:
    response = answer(model, body, url)
    assert response["status_code"] == 200, response
    found = text(response["body"])
    assert found in (["Hi", "Hi", "On", "On"], [72, 72], ["message"])


def test_nothing_of_the_moment_is_left() -> None:
    def made(chance: int) -> dict[str, Any]:
        calls = [{"id": f"call_{chance + i:024x}", "function": {}} for i in range(2)]
        return {
            "id": f"chatcmpl-{chance:024x}",
            "created": chance,
            "choices": [{"index": 0, "message": {"tool_calls": calls, "content": "a_0 b"}}],
            "output": [{"call_id": calls[1]["id"], "id": f"fc_{chance + 9:024x}"}],
            "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": chance}},
            "timings": {"prompt_ms": chance},
            "tools": [{"id": "x_0123456789abcdef0123", "created": 7, "timings": 1}],
        }

    first, second = (_settled(made(chance), "KEY", {}) for chance in (5, 99))
    assert first == second and first["id"] == "chatcmpl-KEY_0"
    message = first["choices"][0]["message"]
    assert [call["id"] for call in message["tool_calls"]] == ["call_KEY_1", "call_KEY_2"]
    assert first["output"] == [{"call_id": "call_KEY_2", "id": "fc_KEY_3"}]
    assert first["usage"] == {"prompt_tokens": 3} and first["created"] == 0
    assert first["tools"] == made(0)["tools"] and message["content"] == "a_0 b"
