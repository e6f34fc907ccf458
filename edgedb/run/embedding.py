"""Texts as vectors: the mean of the last hidden state over a text's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import ContextFullError, EdgeDBError
from ..ops.sequences import MAX_ROWS
from .loaded import LoadedModel
from .loop import Turn
from .pace import Pace
from .schedule import Place


def embed(model: LoadedModel, texts: Sequence[str]) -> np.ndarray:
    """Vectors of length 1, float32 ``(len(texts), hidden_size)``.

    Every text is read by itself, beginning with BOS if the model wants one.
    """
    ids = [model.tokenize(text) for text in texts]
    out = np.empty((len(ids), model.config.hidden_size), np.float32)
    for row, vector in zip(out, vectors(model, ids), strict=True):
        row[:] = vector
    return out


def vectors(
    model: LoadedModel,
    texts: Sequence[Sequence[int]],
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[np.ndarray]:
    """A vector of length 1 for each of ``texts``, token ids: float32 ``(hidden_size,)``.

    The sums are taken token by token in float64, so the bits are the same on every CPU with the
    native backend. Ends early, within 100 ms, when it is ``cancelled``.
    """
    for number, tokens in enumerate(texts, 1):
        if not tokens:
            raise EdgeDBError(f"text {number} has no tokens; there is nothing to embed")
        if len(tokens) > model.context:
            raise ContextFullError(
                f"text {number} has {len(tokens)} tokens, more than the context of {model.context}"
            )
    cache, place = model.network.cache(model.context, model.kv_dtype), Place()
    pace = Pace(model.loop.times, MAX_ROWS)
    for tokens in texts:
        cache.truncate(0)
        total = np.zeros(model.config.hidden_size, np.float64)
        while (at := cache.length) < len(tokens):
            if cancelled is not None and cancelled():
                return
            most = MAX_ROWS if cancelled is None else pace.batch
            turn = Turn(cache, tokens[at : at + most], "hidden", place, is_stream=False, most=most)
            model.loop.run(turn, cancelled)
            if turn.is_withdrawn:
                continue
            pace.measured(turn.rows, turn.seconds)
            assert turn.result is not None, "it was asked for"
            for hidden in turn.result:
                total += hidden
        length = math.sqrt(math.fsum((total * total).tolist()))
        if not 0 < length < math.inf:
            raise EdgeDBError("the model's output is not finite; its file is damaged")
        yield (total / length).astype(np.float32)
