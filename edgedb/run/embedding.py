"""Texts as vectors: the mean of the last hidden state over a text's tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import ContextFullError, EdgeDBError
from ..ops.sequences import MAX_ROWS
from .loaded import LoadedModel
from .loop import Turn
from .schedule import Place


def embed(model: LoadedModel, texts: Sequence[str]) -> np.ndarray:
    """Vectors of length 1, float32 ``(len(texts), hidden_size)``.

    Every text is read by itself, beginning with BOS if the model wants one. The sums are taken
    token by token in float64, so the bits are the same on every CPU with the native backend.
    """
    ids = [model.tokenize(text) for text in texts]
    for number, tokens in enumerate(ids, 1):
        if not tokens:
            raise EdgeDBError(f"text {number} has no tokens; there is nothing to embed")
        if len(tokens) > model.context:
            raise ContextFullError(
                f"text {number} has {len(tokens)} tokens, more than the context of {model.context}"
            )
    out = np.empty((len(ids), model.config.hidden_size), np.float32)
    cache, place = model.network.cache(model.context, model.kv_dtype), Place()
    for row, tokens in zip(out, ids, strict=True):
        cache.truncate(0)
        total = np.zeros(model.config.hidden_size, np.float64)
        while (at := cache.length) < len(tokens):
            part = tokens[at : at + MAX_ROWS]
            turn = Turn(cache, part, "hidden", place, is_stream=False, most=MAX_ROWS)
            model.loop.run(turn)
            assert turn.result is not None, "it was asked for"
            for hidden in turn.result:
                total += hidden
        length = math.sqrt(math.fsum((total * total).tolist()))
        if not 0 < length < math.inf:
            raise EdgeDBError("the model's output is not finite; its file is damaged")
        row[:] = total / length
    return out
