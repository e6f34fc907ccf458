"""From a line to its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgedb
from edgedb.jobs.answering import Answering, Cancelled
from edgedb.jobs.defaults import Defaults
from edgedb.jobs.lines import parse_line


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, backend="numpy")


def answer(model: edgedb.Model, line: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    chosen = Defaults(**{"max_tokens": 6, **defaults})
    record = Answering(model, chosen)(parse_line(3, json.dumps(line)), lambda: False)
    assert record.number == 3 and "\n" not in record.text
    found = json.loads(record.text)
    assert record.failed == ("error" in found)
    assert record.tokens == found.get("completion_tokens", 0)
    return dict(found)


def test_a_prompt_is_continued(model: edgedb.Model) -> None:
    seed = parse_line(3, '{"id": "a"}').seed(0)
    expected = model.generate("Once upon", max_tokens=6, seed=seed)
    assert answer(model, {"id": "a", "prompt": "Once upon"}) == {
        "id": "a",
        "text": expected.text,
        "finish_reason": "length",
        "seed": seed,
        "prompt_tokens": expected.stats.prompt_tokens,
        "completion_tokens": 6,
    }
    ids = model.tokenize("Once upon")
    assert answer(model, {"id": "a", "prompt": ids})["text"] == expected.text


def test_a_conversation_is_answered(model: edgedb.Model) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    expected = model.chat(messages, max_tokens=6, temperature=0)
    assert answer(model, {"messages": messages, "temperature": 0})["text"] == expected.text


def test_a_line_has_options_of_its_own(model: edgedb.Model) -> None:
    from edgedb import SamplingParams

    line = {"prompt": "Hi", "max_tokens": 3, "seed": 5, "temperature": 2.0, "logprobs": 2}
    found = answer(model, line, params=SamplingParams(top_k=0, seed=1))
    expected = model.generate("Hi", max_tokens=3, seed=5, temperature=2, top_k=0, logprobs=2)
    assert (found["text"], found["seed"]) == (expected.text, 5)
    assert expected.logprobs is not None
    assert [one["token"] for one in found["logprobs"]] == expected.tokens
    second = expected.logprobs[0].top[1].logprob
    assert found["logprobs"][0]["top"][1]["logprob"] == pytest.approx(second)
    first = expected.tokens[0]
    barred = answer(model, {**line, "logit_bias": {str(first): -1e9}, "max_tokens": None})
    assert barred["logprobs"][0]["token"] != first and barred["completion_tokens"] == 6


def test_defaults_of_the_run(model: edgedb.Model) -> None:
    text = answer(model, {"prompt": "Hi"})["text"]
    stopped = answer(model, {"prompt": "Hi"}, stop=(text[2],))
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(text[2])], "stop")
    assert answer(model, {"prompt": "Hi", "stop": []}, stop=(text[2],))["text"] == text


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({}, "give a prompt or messages, one of them"),
        ({"prompt": "a", "messages": []}, "give a prompt or messages, one of them"),
        ({"prompt": "a", "temprature": 0}, "there is no option 'temprature'; did you mean temp"),
        ({"prompt": "a", "tools": []}, "there is no option 'tools'"),
        ({"prompt": "a", "temperature": -1}, "temperature = -1"),
        ({"prompt": "a", "seed": "x"}, "seed = 'x'"),
        ({"prompt": "a", "stop_ids": [1 << 20]}, "not in the vocabulary"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "x " * 2000}, "context"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 5}, "prompt = 5"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
    ],
)
def test_a_wrong_line_is_a_record_of_failure(
    model: edgedb.Model, line: dict[str, Any], fault: str
) -> None:
    found = answer(model, line)
    assert found.keys() == {"id", "line", "error"} and found["line"] == 3
    assert fault in found["error"] and "\n" not in found["error"]


def test_any_fault_is_one_line_s(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("all of it\nis gone")

    monkeypatch.setattr(edgedb.Model, "generate", broken)
    assert answer(model, {"prompt": "a"})["error"] == "MemoryError: all of it\\nis gone"


def test_a_cancelled_answer_is_no_record(model: edgedb.Model) -> None:
    stop: Callable[[], bool] = lambda: True  # noqa: E731
    with pytest.raises(Cancelled):
        Answering(model, Defaults())(parse_line(1, '{"prompt": "Hi"}'), stop)
