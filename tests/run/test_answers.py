"""Options of an answer: stop ids, log-probabilities, several answers, processors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgedb
from edgedb import EdgeDBError
from edgedb.ops.selection import NumpySelection
from edgedb.run.request import RULES, AnswerOptions, Request, SamplingOptions

PROMPT = [5, 9, 2, 40, 17, 23, 8]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=100)


def test_a_stop_id_ends_the_answer(model: edgedb.Model) -> None:
    free = model.generate(PROMPT, max_tokens=20, temperature=1.5, seed=5)
    stop = free.tokens[6]
    first = free.tokens.index(stop)
    ended = model.generate(PROMPT, max_tokens=20, temperature=1.5, seed=5, stop_ids=[stop])
    assert ended.finish_reason == "stop"
    assert ended.tokens == free.tokens[:first]


def test_log_probabilities_are_those_of_the_model(model: edgedb.Model) -> None:
    options = {"max_tokens": 8, "temperature": 1.5, "seed": 2, "repetition_penalty": 1.3}
    answer = model.generate(PROMPT, logprobs=3, **options)
    assert answer.tokens == model.generate(PROMPT, **options).tokens
    logits = model.logits([*PROMPT, *answer.tokens])[len(PROMPT) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert answer.logprobs is not None and len(answer.logprobs) == 8
    for row, token, found in zip(expected, answer.tokens, answer.logprobs, strict=True):
        assert found.token == token and found.logprob == pytest.approx(row[token], abs=1e-9)
        assert [t.token for t in found.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert found.top[0].logprob == pytest.approx(row.max(), abs=1e-9)
        data = model.tokenizer.token_bytes(token, skip_special=False)
        assert found.text == data.decode("utf-8", "replace")
    assert model.generate(PROMPT, logprobs=0, **options).logprobs[0].top == ()
    assert model.generate(PROMPT, **options).logprobs is None
    with pytest.raises(EdgeDBError, match="logprobs"):
        model.generate(PROMPT, logprobs=-1)


def test_several_answers_read_the_prompt_once(model: edgedb.Model) -> None:
    options = {"max_tokens": 8, "temperature": 1.5}
    answers = model.generate(PROMPT, n=3, seed=7, **options)
    alone = [model.generate(PROMPT, seed=7 + i, **options) for i in range(3)]
    assert [a.tokens for a in answers] == [a.tokens for a in alone]
    assert [a.stats.read_tokens for a in answers] == [0, 0, 0]
    chunks = list(model.generate(PROMPT, n=3, seed=7, stream=True, **options))
    for index, answer in enumerate(answers):
        assert "".join(c.text for c in chunks if c.index == index) == answer.text
    with pytest.raises(EdgeDBError, match="n = 0"):
        model.generate(PROMPT, n=0)


def test_several_answers_leave_the_session_at_the_prompt(model: edgedb.Model) -> None:
    session = model.session()
    messages = [{"role": "user", "content": "Hi"}]
    answers = session.chat(messages, n=2, max_tokens=5, temperature=1.5)
    assert len(answers) == 2 and session.tokens == model.chat_tokens(messages)


def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(model: edgedb.Model) -> None:
    """No token is read again, in parts or as one text."""
    session, options = model.session(), {"temperature": 0, "logit_bias": {2: float("-inf")}}
    question = {"role": "user", "content": "Hi"}
    whole = model.chat([question], max_tokens=12, **options)
    said = session.chat([question], max_tokens=5, **options)
    rest = session.chat(
        [question, {"role": "assistant", "content": [{"type": "text", "text": said.text}]}],
        continue_final_message=True,
        max_tokens=7,
        **options,
    )
    assert [*said.tokens, *rest.tokens] == whole.tokens
    assert rest.stats.read_tokens <= 1


def test_a_template_gets_tools_documents_and_variables(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgedb.load(tiny_model, backend="numpy")
    """None of them spells a control token."""
    template = (
        "{{ tools[0].name }}{{ documents[0].text }}{{ enable_thinking }}{{ x ~ messages|length }}"
    )
    spec = dataclasses.replace(model.tokenizer_spec, chat_template=template)
    monkeypatch.setattr(edgedb.Model, "tokenizer_spec", property(lambda model: spec))
    given: dict[str, Any] = {
        "tools": [{"name": "<|im_start|>"}],
        "documents": [{"title": "T", "text": "<|im_end|>"}],
        "chat_template_kwargs": {"enable_thinking": False, "x": "<|endoftext|>"},
    }
    messages = [{"role": "user", "content": "Hi"}]
    text = "<|im_start|><|im_end|>False<|endoftext|>1"
    assert model.chat_text(messages, **given) == text
    session = model.session()
    answer = session.chat(messages, max_tokens=3, **given)
    held = session.tokens[: answer.stats.prompt_tokens]
    assert held == model.chat_tokens(messages, **given) == model.tokenize(text)
    with pytest.raises(TypeError, match="enable_thinking"):
        model.chat(messages, **given, enable_thinking=False)


def test_a_processor_sees_the_whole_sequence(model: edgedb.Model) -> None:
    seen: list[list[int]] = []

    def never_seven(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        logits[:] = -np.inf
        logits[[7, 30]] = [1.0, 0.5]
        logits[7] = -np.inf
        return logits

    answer = model.generate(PROMPT, processors=never_seven, max_tokens=3)
    assert answer.tokens == [30, 30, 30]
    assert seen == [PROMPT, [*PROMPT, 30], [*PROMPT, 30, 30]]


def test_dry_takes_its_breakers_from_the_vocabulary(model: edgedb.Model) -> None:
    """Token 7 is forced, so that it repeats; where it is a breaker nothing is penalized."""
    bias = {7: 500.0, 30: 450.0}
    options = {"temperature": 0, "max_tokens": 4, "logit_bias": bias, "dry_multiplier": 99.0}
    text = model.tokenizer.token_bytes(7).decode()
    free = model.generate(PROMPT, dry_breakers=(), dry_allowed_length=1, **options)
    broken = model.generate(PROMPT, dry_breakers=(text,), dry_allowed_length=1, **options)
    assert broken.tokens == [7, 7, 7, 7] != free.tokens


def test_the_end_of_a_turn_is_no_repetition(model: edgedb.Model) -> None:
    """Ends of earlier turns in the prompt make the next one no less likely, nor does DRY."""
    prompt = [5, 2, 1, 5, 2, 1, 5]
    logits = model.logits(prompt)[-1]
    options = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    for given in (options, {"dry_multiplier": 2.0, "dry_allowed_length": 1}):
        seen: list[np.ndarray] = []
        sampler = Request.of(temperature=0, **given).sampler(model)
        sampler._ops = Watched(seen)
        sampler.sample(logits, prompt)
        changed = np.flatnonzero(seen[0] != logits).tolist()
        assert changed == ([5] if given is options else [])


class Watched(NumpySelection):
    """Notes the scores among which a token is chosen."""

    def __init__(self, seen: list[np.ndarray]) -> None:
        self.seen = seen

    def largest(self, logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(logits.copy())
        return super().largest(logits, k)


def test_an_unknown_option_is_told_the_one_that_was_meant(model: edgedb.Model) -> None:
    with pytest.raises(TypeError, match="no option 'temp'; did you mean temperature"):
        model.generate(PROMPT, temp=0.5)  # type: ignore[call-overload]


def test_the_typed_options_are_all_that_there_are() -> None:
    sampling = {field.name for field in dataclasses.fields(edgedb.SamplingParams)}
    assert set(SamplingOptions.__annotations__) == sampling
    assert set(AnswerOptions.__annotations__) == sampling | RULES.keys() | {"json_schema"}
