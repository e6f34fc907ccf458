"""Probabilities of the tokens that were chosen, and of those that might have been."""

from __future__ import annotations

import numpy as np

from ..ops.exactmath import log
from ..ops.selection import Floats, Selection
from ..text.tokenizer import Tokenizer
from .completion import Logprob, TokenLogprobs


def token_logprobs(
    logits: Floats, token: int, n_top: int, ops: Selection, tokenizer: Tokenizer
) -> TokenLogprobs:
    """Log-probabilities of ``token`` and the ``n_top`` most likely ones from ``logits`` float32
    ``(vocab,)``. Takes an exponential for each token of the vocabulary."""
    ids, values = ops.largest(logits, max(1, min(n_top, len(logits))))
    top = float(values[0])
    total = float(log(np.cumsum(ops.softmax_weights(logits, top))[-1]))

    def text(i: int) -> str:
        return tokenizer.token_bytes(i, skip_special=False).decode("utf-8", "replace")

    likely = tuple(
        Logprob(int(i), text(int(i)), float(value) - top - total)
        for i, value in zip(ids[:n_top], values, strict=False)
    )
    return TokenLogprobs(token, text(token), float(logits[token]) - top - total, likely)
