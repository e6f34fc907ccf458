"""Chats as the ``openai`` package has them."""

from __future__ import annotations

from typing import Any

import pytest

from edgedb.serve.served import Served

openai = pytest.importorskip("openai")

HI = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def solo(served: Served, messages: Any = HI, **options: Any) -> str:
    """What the model answers by itself."""
    return served.model.chat(messages, params=served.params, **options).text


def test_an_answer_is_the_models_own(client: Any, served: Served) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12, seed=5)
    choice = answer.choices[0]
    assert choice.message.content == solo(served, max_tokens=12, seed=5)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_has_the_events_that_clients_expect(client: Any, served: Served) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=12,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    first, *middle, last, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == solo(served, max_tokens=12, seed=5)
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.completion_tokens == 12
