"""Ollama's routes, by the ``ollama`` package."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgedb.serve.served import Served

ollama = pytest.importorskip("ollama")

HI = [{"role": "user", "content": "Hi there"}]
OPTIONS = {"num_predict": 10, "seed": 5}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
}


@pytest.fixture
def local(server: Any) -> Any:
    return ollama.Client(host=server.address)


def solo(served: Served, messages: Any = HI) -> str:
    return served.model.chat(messages, params=served.params, max_tokens=10, seed=5).text


def test_a_chat_and_its_stream(local: Any, served: Served) -> None:
    answer = local.chat(model="tiny", messages=HI, options=OPTIONS)
    assert answer.message.content == solo(served)
    assert (answer.done_reason, answer.eval_count) == ("length", 10)
    chunks = list(local.chat(model="tiny:latest", messages=HI, options=OPTIONS, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == solo(served)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].prompt_eval_count == answer.prompt_eval_count


def test_generate(local: Any, served: Served) -> None:
    answer = local.generate(model="tiny", prompt="Hi there", options=OPTIONS)
    assert answer.response == solo(served)
    raw = local.generate(model="tiny", prompt="Once upon", raw=True, options=OPTIONS)
    own = served.model.generate("Once upon", params=served.params, max_tokens=10, seed=5)
    assert raw.response == own.text
    chunks = list(local.generate(model="tiny", prompt="Hi there", options=OPTIONS, stream=True))
    assert "".join(chunk.response for chunk in chunks) == solo(served)


def test_forms_and_tools(local: Any) -> None:
    options = {**OPTIONS, "num_predict": 400}
    answer = local.chat(model="tiny", messages=HI, format=CITY, options=options)
    assert json.loads(answer.message.content)["city"] in ("Rome", "Oslo")
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    assert local.chat(model="tiny", messages=HI, tools=[tool], options=OPTIONS).done
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "It rains", "tool_name": "weather"},
    ]
    assert local.chat(model="tiny", messages=messages, tools=[tool], options=OPTIONS).done


def test_vectors(local: Any, served: Served) -> None:
    answer = local.embed(model="tiny", input=["A dog", "A cat"])
    expected = served.model.embed(["A dog", "A cat"])
    np.testing.assert_array_equal(np.array(answer.embeddings, np.float32), expected)


def test_what_is_here(local: Any, http: Any) -> None:
    (one,) = local.list().models
    assert one.model == "tiny" and one.details.format == "dbb"
    assert local.ps().models[0].model == "tiny"
    shown = local.show("tiny")
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.modelinfo["general.parameter_count"] > 0
    assert http.get("/api/version").json()["version"]
    assert http.post("/api/chat", json={"model": "tiny", "stream": False}).json()["done"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"options": {"num_ctx": 100_000}}, "num_ctx"),
        ({"options": {"heat": 1}}, "options.heat"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"messages": [{"role": "user", "content": "x", "images": ["AA=="]}]}, "images"),
        ({"format": "xml"}, "format"),
        ({"think": "hard"}, "think"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(http: Any, body: Any, words: str) -> None:
    answer = http.post("/api/chat", json={"model": "tiny", "messages": HI, **body})
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_another_model_is_not_found(local: Any) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        local.chat(model="llama9", messages=HI)
    assert caught.value.status_code == 404


def test_curl_as_ollamas_pages_have_it(http: Any) -> None:
    data = json.dumps({"model": "tiny", "prompt": "Hi", "options": {"num_predict": 2}})
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/api/generate", content=data, headers=form).status_code == 200
    browser = {**form, "origin": "http://elsewhere.example"}
    assert http.post("/api/generate", content=data, headers=browser).status_code == 415


def test_embeddings_as_older_clients_ask_for_them(local: Any, served: Served) -> None:
    found = local.embeddings(model="tiny", prompt="One, two").embedding
    assert np.array_equal(np.float32(found), served.model.embed("One, two")[0])
    with pytest.raises(ollama.ResponseError, match="prompt"):
        local.embeddings(model="tiny")


def test_the_model_in_memory_stays_there(local: Any) -> None:
    (running,) = local.ps().models
    assert running.expires_at.year > 2200
