"""Embeddings: shape, length, what they depend on, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb import ContextFullError, EdgeDBError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model)


def test_vectors_of_length_one(model: edgedb.Model) -> None:
    texts = ["Once upon a time", "there was", "Once upon a time"]
    vectors = model.embed(texts)
    assert vectors.shape == (3, model.config.hidden_size) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0].tobytes() == vectors[2].tobytes()
    assert vectors[0].tobytes() == model.embed("Once upon a time")[0].tobytes()
    assert abs(float(vectors[0] @ vectors[1])) < 0.999


def test_the_mean_of_the_last_hidden_states(model: edgedb.Model) -> None:
    text = "a little girl named Lily. " * 20  # more than one batch
    ids = model.tokenize(text)
    assert len(ids) > 128
    cache = model.network.cache(model.context)
    state = model.network.state()
    hidden = np.array([model.network.hidden([i], cache, state)[0].copy() for i in ids])
    mean = hidden.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(model.embed(text)[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_the_head_sees_the_hidden_state(model: edgedb.Model) -> None:
    """It is the state after the final norm that is averaged, the one that gives the logits."""
    state, cache = model.network.state(), model.network.cache(16)
    hidden = model.ops.wrap(model.network.hidden([5, 6, 7], cache, state).copy())
    out = model.ops.buffer((3, model.config.vocab_size))
    head = model.file.linears.get("head", model.file.linears["embedding"])
    model.ops.matmul(model.ops.matrix(head), hidden, out, 3)
    np.testing.assert_allclose(out.array, model.logits([5, 6, 7]), rtol=1e-5, atol=1e-5)


def test_texts_that_cannot_be_embedded(tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, context=16)
    assert model.embed([]).shape == (0, model.config.hidden_size)
    with pytest.raises(EdgeDBError, match="text 2 has no tokens"):
        model.embed(["a", ""])
    with pytest.raises(ContextFullError, match="text 1 has"):
        model.embed("a b c " * 20)
