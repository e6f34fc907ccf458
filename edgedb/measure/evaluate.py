"""Perplexity, by the protocol that the 2-bit literature uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import arguments
from ..errors import EdgeDBError
from ..run.engine import Model


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of a text, and everything needed to repeat the figure."""

    perplexity: float
    nll: float  # mean negative log-likelihood, nats a token
    n_scored: int  # predicted tokens
    n_windows: int
    window: int  # tokens a window
    n_text_tokens: int  # tokens of the whole text
    bos: bool  # whether each window starts with BOS

    @property
    def protocol(self) -> str:
        """The protocol in one line."""
        start = "each starts with BOS" if self.bos else "no BOS"
        return (
            f"{self.n_windows} independent windows of {self.window} tokens, {start}, "
            f"the first token of a window is not scored, the incomplete last window is dropped"
        )


def perplexity(
    model: Model,
    text: str,
    *,
    window: int | None = None,
    max_windows: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> PerplexityResult:
    """Perplexity of ``text`` in independent windows of ``window`` tokens (default 2,048).

    A text shorter than one window is one window of its own length. ``progress(done, windows,
    perplexity so far)`` is called after each. Raises ``EdgeDBError`` if the window does not fit
    into the context or the text has fewer than two tokens.
    """
    bos = model.tokenizer_spec.add_bos and model.tokenizer_spec.bos_id is not None
    ids = model.tokenize(text, add_bos=False)
    default = min(2048, model.context)
    window = arguments.optional(arguments.whole(2, model.context), default)("window", window)
    max_windows = arguments.optional(arguments.whole(1))("max_windows", max_windows)
    body = window - bos  # tokens of the text in each window
    if len(ids) < body:
        body = len(ids)
        window = body + bos
    if body < 2:
        raise EdgeDBError("the text has fewer than two tokens; there is nothing to predict")
    n_windows = len(ids) // body
    if max_windows is not None:
        n_windows = min(n_windows, max_windows)

    scorer = _Scorer(model, window)
    total, n_scored = 0.0, 0
    for i in range(n_windows):
        tokens = ids[i * body : (i + 1) * body]
        if bos:
            tokens = [int(model.tokenizer_spec.bos_id or 0), *tokens]
        total += scorer.nll(tokens)
        n_scored += len(tokens) - 1
        if progress is not None:
            progress(i + 1, n_windows, math.exp(min(total / n_scored, 700)))
    mean = total / n_scored
    return PerplexityResult(
        math.exp(min(mean, 700)), mean, n_scored, n_windows, window, len(ids), bool(bos)
    )


class _Scorer:
    """Cache and buffers for windows, allocated once."""

    def __init__(self, model: Model, window: int) -> None:
        self.network = model.network
        self.cache = model.network.cache(window, model.kv_dtype)
        self.state = model.network.state()

    def nll(self, tokens: list[int]) -> float:
        """Sum over the window of ``-log p(token | tokens before it)``."""
        self.cache.truncate(0)
        total = 0.0
        targets = np.array(tokens[1:])
        for start, logits in self.network.passes(tokens[:-1], self.cache, self.state, "all"):
            assert logits is not None, "they were asked for"
            total -= float(log_likelihoods(logits, targets[start : start + len(logits)]).sum())
        return total


def log_likelihoods(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-probability of ``targets [n]`` under ``logits [n, vocabulary]``, float64 ``[n]``."""
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64)) + top[:, 0]
    chosen: np.ndarray = logits[np.arange(len(targets)), targets] - log_sum
    return chosen
