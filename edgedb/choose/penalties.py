"""Changes of a few logits before a token is chosen: bias, repetition penalties, DRY.

Everything works in place on float32 ``scores`` ``(vocab,)`` and touches only the tokens concerned,
by single rounded operations: the bits are the same on every CPU.

Special tokens are ``exempt`` from what repeats: each turn ends with the same one, and a penalty for
that would keep answers from ending.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arguments import LARGEST
from ..errors import EdgeDBError
from ..ops.selection import Floats, Ids
from ..text.tokenizer import Tokenizer

# A repetition so many tokens longer than allowed is as bad as any longer one.
_LONGEST = 32


def add_bias(scores: Floats, tokens: Ids, values: Floats) -> None:
    """Add ``values`` to the scores of ``tokens``. Raises ``EdgeDBError`` for an unknown id."""
    if len(tokens) and int(tokens.max()) >= len(scores):
        raise EdgeDBError(
            f"logit_bias: token {tokens.max()} is not in the vocabulary of {len(scores)}"
        )
    scores[tokens] += values


def penalize_repetition(
    scores: Floats,
    recent: Sequence[int] | Ids,
    repetition: float,
    presence: float,
    frequency: float,
    exempt: np.ndarray | None = None,
) -> None:
    """The repetition penalty of CTRL (arXiv 1909.05858, section 4.1), then OpenAI's two, on the
    tokens of ``recent`` but for those of ``exempt``, bool ``(vocab,)``."""
    tokens, counts = np.unique(np.asarray(recent, np.intp), return_counts=True)
    if exempt is not None:
        kept = ~exempt[tokens]
        tokens, counts = tokens[kept], counts[kept]
    values = scores[tokens]
    factor = np.float32(repetition)
    with np.errstate(over="ignore"):  # of a huge bias: no logit may become +inf
        values = np.minimum(np.where(values > 0, values / factor, values * factor), LARGEST)
    taken = counts.astype(np.float32) * np.float32(frequency) + np.float32(presence)
    scores[tokens] = values - taken


def penalize_sequences(
    scores: Floats,
    history: Ids,
    multiplier: float,
    base: float,
    allowed: int,
    breakers: np.ndarray | None = None,
    exempt: np.ndarray | None = None,
) -> None:
    """DRY ("don't repeat yourself"): makes tokens less likely that would prolong a repetition.

    If the last ``n >= allowed`` tokens of ``history`` int32 ``(length,)`` occurred before and token
    t followed them, the score of t loses ``multiplier * base ** (n - allowed)``, with the longest
    such n, unless t is of ``exempt``. A sequence begins after the last token of ``breakers``. Both
    masks are bool ``(vocab,)``.
    """
    last = len(history) - 1
    if last < 1 or (breakers is not None and breakers[history[last]]):
        return
    ends = np.flatnonzero(history[:last] == history[last])
    longest: dict[int, int] = {}
    for length in range(1, allowed + _LONGEST + 1):
        if not len(ends):
            break
        for token in history[ends + 1].tolist():
            longest[token] = length
        before = last - length  # what both sequences have to share to be one longer
        if before < 0 or (breakers is not None and breakers[history[before]]):
            break
        ends = ends[ends >= length]
        ends = ends[history[ends - length] == history[before]]
    for token, length in longest.items():
        if length >= max(allowed, 1) and not (exempt is not None and exempt[token]):
            power = 1.0
            for _ in range(length - allowed):  # not **, whose last bit is the C library's choice
                power *= base
            scores[token] = np.float32(float(scores[token]) - min(multiplier * power, LARGEST))


def special_mask(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Which tokens of a model are special, bool ``(vocab_size,)``."""
    mask = np.zeros(vocab_size, bool)
    mask[list(tokenizer.special_ids)] = True
    return mask


def breaker_mask(tokenizer: Tokenizer, key: tuple[int, Sequence[str]]) -> np.ndarray:
    """Which tokens end a sequence for DRY, bool ``(vocab_size,)``: those whose text has one of the
    breakers in it, and special tokens. ``key`` is the model's size and the breakers. Takes some
    50 ms for 50,000 tokens."""
    vocab_size, breakers = key
    wanted = [text.encode() for text in breakers]
    mask = special_mask(tokenizer, vocab_size)
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        mask[token] |= any(text in data for text in wanted)
    return mask
