"""A model that reads many sequences together, one token of each at a time: the interpreter with a
cache.

Shapes and places are fixed, and the position is a number on the device: a pass can be captured as a
CUDA graph and replayed at the next position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .decoder import Decoder, in_type
from .interpreter import Attend, Turns, softcap, softmax_beside


class CachedPass:
    """Weights, and room for ``length`` tokens of each of ``sequences``, in ``dtype``.

    The cache takes about ``2 * layers * kv_size * dtype * sequences * length`` bytes.
    """

    BUCKET = 128  # attention reads the cache up to the next multiple of this

    def __init__(self, model: Decoder, sequences: int, length: int, dtype: torch.dtype) -> None:
        self._model, self._length = in_type(model, dtype), length
        self._turns = model.turns(length)
        self._attentions = model.program.attentions()
        shapes = [(sequences, a["n_kv_heads"], length, a["head_dim"]) for a in self._attentions]
        self._keys, self._values = (
            [torch.zeros(shape, dtype=dtype, device=model.device) for shape in shapes]
            for _ in range(2)
        )

    def reach(self, position: int) -> int:
        """Places that the pass at ``position`` reads: the same for a whole bucket of positions."""
        return min((position // self.BUCKET + 1) * self.BUCKET, self._length)

    @torch.no_grad()
    def logits(self, tokens: Tensor, position: Tensor, reach: int) -> Tensor:
        """Float32 ``[sequences, vocabulary]`` after ``tokens``, int64 ``[sequences]``.

        position: theirs, int64 ``[1]``; earlier ones have been read. reach: ``reach`` of it.
        """
        tables = tuple((cos[position], sin[position]) for cos, sin in self._turns.tables)
        turns = Turns(position, tables)
        hidden, head = self._model(tokens[:, None], turns, list(self._attends(position, reach)))
        return head.logits(hidden[:, 0]).float()

    def _attends(self, position: Tensor, reach: int) -> Iterator[Attend]:
        """Each layer's attention, which stores keys and values and sees those stored so far."""
        earliest = (reach - 1) // self.BUCKET * self.BUCKET  # that is read with this reach
        seen: dict[int, tuple[slice, Tensor, Tensor]] = {}
        for attention, keys, values in zip(self._attentions, self._keys, self._values, strict=True):
            window = attention["window"] or reach
            if window not in seen:
                begin = max(0, earliest - window + 1)
                distance = position - torch.arange(begin, reach, device=position.device)
                unseen = (distance < 0) | (distance >= window)
                seen[window] = slice(begin, reach), distance, unseen
            yield partial(_attend, keys, values, position, *seen[window])


def _attend(
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    places: slice,
    distance: Tensor,
    unseen: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Mapping[str, Any],
    sinks: Tensor | None,
) -> Tensor:
    """Of one token of each sequence; ``unseen`` says which of ``places`` are none of its keys, and
    ``distance`` how far they are behind it."""
    keys.index_copy_(2, position, k.transpose(1, 2))
    values.index_copy_(2, position, v.transpose(1, 2))
    n, _, n_kv_heads, head_dim = k.shape
    queries = q.reshape(n, n_kv_heads, -1, head_dim)
    scores = queries @ keys[:, :, places].transpose(-1, -2) * own["scale"]
    if own["cap"] is not None:
        scores = softcap(scores.float(), own["cap"])
    if own["slopes"] is not None:
        slopes = torch.tensor(own["slopes"], device=q.device).reshape(n_kv_heads, -1, 1)
        scores = scores - (slopes * distance).to(scores.dtype)
    scores = scores.masked_fill(unseen, -torch.inf)
    weights = softmax_beside(scores.flatten(1, 2)[:, :, None], sinks).view_as(scores)
    return (weights.to(q.dtype) @ values[:, :, places]).reshape(q.shape)
