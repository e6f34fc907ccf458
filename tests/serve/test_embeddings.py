"""Vectors of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgedb.serve.served import Served

openai = pytest.importorskip("openai")


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_vectors_are_the_models_own(client: Any, served: Served, form: Any) -> None:
    more = {} if form is None else {"encoding_format": form}
    texts = ["A dog", "A cat"]
    answer = client.embeddings.create(model="tiny", input=texts, **more)
    found = [one.embedding for one in answer.data]
    if form == "base64":
        import base64

        found = [np.frombuffer(base64.b64decode(one), "<f4") for one in found]
    np.testing.assert_array_equal(np.array(found, np.float32), served.model.embed(texts))
    ids = [served.model.tokenize(text) for text in texts]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    again = client.embeddings.create(model="tiny", input=ids)
    assert again.data[1].embedding == pytest.approx(list(found[1]), abs=0)


@pytest.mark.parametrize("options", [{"input": ""}, {"input": []}, {"input": "x", "dimensions": 5}])
def test_what_has_no_vector_is_refused(client: Any, options: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="tiny", **options)


def test_a_text_that_is_too_long_is_not_cut(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input="x " * 3000)
    assert caught.value.code == "context_length_exceeded"
