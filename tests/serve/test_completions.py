"""Completions as the ``openai`` package has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgedb.serve.served import Served

openai = pytest.importorskip("openai")


def ask(client: Any, **options: Any) -> Any:
    given = {"model": "tiny", "prompt": "Once upon", "max_tokens": 8, "seed": 5, **options}
    return client.completions.create(**given)


def solo(served: Served, prompt: Any, **options: Any) -> Any:
    return served.model.generate(prompt, params=served.params, max_tokens=8, seed=5, **options)


def test_texts_lists_and_ids(client: Any, served: Served) -> None:
    ids = served.model.tokenize("Once upon")
    own, other = solo(served, "Once upon").text, solo(served, "A dog").text
    assert [c.text for c in ask(client).choices] == [own]
    assert [c.text for c in ask(client, prompt=ids).choices] == [own]
    both = ask(client, prompt=["Once upon", "A dog"])
    assert [(c.index, c.text) for c in both.choices] == [(0, own), (1, other)]
    assert both.usage.completion_tokens == 16
    assert [c.text for c in ask(client, prompt=[ids, ids], n=1).choices] == [own] * 2


def test_a_stream(client: Any, served: Served) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = list(ask(client, **options))
    assert "".join(c.choices[0].text for c in chunks) == solo(served, "Once upon").text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 8


def test_echo_with_the_probabilities_of_the_prompt(client: Any, served: Served) -> None:
    own = solo(served, "Once upon", logprobs=2)
    choice = ask(client, echo=True, logprobs=2).choices[0]
    assert choice.text == "Once upon" + own.text
    told, ids = choice.logprobs, served.model.tokenize("Once upon")
    rows = served.model.logits(ids).astype(np.float64)
    expected = [None] + [
        float(row[i] - np.log(np.exp(row).sum())) for row, i in zip(rows[:-1], ids[1:], strict=True)
    ]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    np.testing.assert_allclose(told.token_logprobs[1 : len(ids)], expected[1:], rtol=1e-4)
    assert own.logprobs is not None
    assert told.token_logprobs[len(ids) :] == [one.logprob for one in own.logprobs]
    assert told.text_offset[len(ids)] == len("Once upon")


def test_control_tokens_of_a_text(http: Any) -> None:
    said = {"content": "<|im_start|>x"}
    special = http.post("/tokenize", json=said).json()["tokens"]
    plain = http.post("/tokenize", json={**said, "parse_special": False}).json()["tokens"]
    assert special[0] == 1 and len(special) == 2 and len(plain) > 2
    for tokens in (special, plain):
        assert http.post("/detokenize", json={"tokens": tokens}).json() == said
    pieces = http.post("/tokenize", json={"content": "x", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": special[1], "piece": "x"}]


@pytest.mark.parametrize(
    "options",
    [{"prompt": []}, {"prompt": [-1]}, {"prompt": ""}, {"suffix": "x"}, {"best_of": 3},
     {"logprobs": 90}],
)  # fmt: skip
def test_what_is_not_understood_is_refused(client: Any, options: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, **options)
