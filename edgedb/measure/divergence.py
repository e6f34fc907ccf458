"""How far a model's predictions are from its teacher's, by the protocol of ``llama-perplexity``.

Mean and tail of the KL divergence, how often both find the same token likeliest, and perplexities,
over the second half of each window (``base_logits``, which holds what the teacher predicted).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import arguments
from ..errors import EdgeDBError
from ..files import replacing
from ..run.engine import Model
from .base_logits import BaseLogits, Float32, encode, first_scored, open_base, write_header
from .evaluate import log_likelihoods

# The base holds what is less likely only as a bound, and llama.cpp leaves it out.
_LEAST = np.float32(-16)

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class DivergenceResult:
    """From the teacher to the model, over ``n_scored`` predictions; KL in nats a token."""

    kl: float  # the mean
    kl_error: float  # its standard error
    kl_median: float
    kl_99: float  # 99% are not larger
    kl_999: float  # 99.9%
    kl_max: float
    same_top: float  # share of predictions whose likeliest token is the teacher's
    perplexity: float
    base_perplexity: float  # the teacher's
    n_scored: int
    n_windows: int
    window: int  # tokens a window

    @property
    def ratio(self) -> float:
        """Perplexity over the teacher's."""
        return self.perplexity / self.base_perplexity

    @property
    def protocol(self) -> str:
        """The protocol in one line."""
        return (
            f"{self.n_windows} independent windows of {self.window} tokens, "
            f"the second half of each scored, against the teacher's log-probabilities in 16 bits"
        )


def divergence(
    model: Model,
    base: Path,
    *,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> DivergenceResult:
    """Compare ``model`` with the teacher whose predictions ``base`` holds.

    ``progress(done, windows, mean KL so far)`` is called after each window. Raises ``EdgeDBError``
    if the file is damaged, or for another vocabulary or longer windows than the model's.
    """
    max_windows = arguments.optional(arguments.whole(1))("max_windows", max_windows)
    with open_base(base) as file:
        if file.vocabulary != model.config.vocab_size:
            raise EdgeDBError(
                f"{base} is of a vocabulary of {file.vocabulary:,}, the model's has "
                f"{model.config.vocab_size:,}"
            )
        n_windows = min(file.n_windows, max_windows or file.n_windows)
        reader = _Reader(model, file.window)
        pieces: list[_Piece] = []
        for window in range(n_windows):
            for start, logits in reader.scored(file.ids[window]):
                pieces.append(_compare(file, window, start, logits))
            if progress is not None:
                progress(window + 1, n_windows, _mean(pieces))
    return _result(pieces, n_windows, file.window)


def write_base(
    model: Model,
    text: str,
    path: Path,
    *,
    window: int | None = None,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Keep what ``model``, a teacher, predicts on ``text`` in windows of ``window`` tokens (default
    2,048) for ``divergence``; the number of windows. Raises ``EdgeDBError`` if the text is shorter
    than one, ``OSError`` if the file cannot be written.

    ``progress(done, windows, perplexity so far)`` is called after each.
    """
    default = min(2048, model.context)
    window = arguments.optional(arguments.whole(4, model.context), default)("window", window)
    max_windows = arguments.optional(arguments.whole(1))("max_windows", max_windows)
    ids = np.array(model.tokenize(text), np.int64)
    n_windows = min(len(ids) // window, max_windows or len(ids))
    if not n_windows:
        raise EdgeDBError(f"the text has {len(ids):,} tokens, fewer than a window of {window:,}")
    ids = ids[: n_windows * window].reshape(n_windows, window)
    reader = _Reader(model, window)
    total, n_scored = 0.0, 0
    with replacing(path) as file:
        write_header(file, ids, model.config.vocab_size)
        for number, tokens in enumerate(ids):
            targets = tokens[first_scored(window) + 1 :]
            for start, logits in reader.scored(tokens):
                file.write(encode(logits))
                total -= log_likelihoods(logits, targets[start : start + len(logits)]).sum()
                n_scored += len(logits)
            if progress is not None:
                progress(number + 1, n_windows, math.exp(min(total / n_scored, 700)))
    return n_windows


class _Reader:
    """Cache and buffers for windows, allocated once."""

    def __init__(self, model: Model, window: int) -> None:
        if window > model.context:
            raise EdgeDBError(
                f"windows of {window:,} tokens do not fit into a context of {model.context:,}"
            )
        self.network = model.network
        self.cache = model.network.cache(window, model.kv_dtype)
        self.state = model.network.state()
        spec = model.tokenizer_spec
        self.bos = spec.bos_id if spec.add_bos else None

    def scored(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, Float32]]:
        """Logits ``[n, vocabulary]`` of the scored places of a window, and where they begin."""
        tokens = [int(i) for i in ids[:-1]]
        if self.bos is not None:
            tokens[0] = self.bos  # whatever stood there, as llama-perplexity does
        first = first_scored(len(ids))
        self.cache.truncate(0)
        for _ in self.network.passes(tokens[:first], self.cache, self.state, None):
            pass
        for start, logits in self.network.passes(tokens[first:], self.cache, self.state, "all"):
            assert logits is not None, "they were asked for"
            yield start, logits


@dataclass(frozen=True)
class _Piece:
    """Of some predictions, float64 or bool ``[n]`` each."""

    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    base_nll: NDArray[np.float64]
    same: NDArray[np.bool_]


def _compare(file: BaseLogits, window: int, start: int, logits: Float32) -> _Piece:
    n = len(logits)
    base = file.log_probabilities(window, start, n)
    at = first_scored(file.window) + 1 + start
    targets = file.ids[window, at : at + n]
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64))
    normalizer = (top + log_sum).astype(np.float32)
    p = np.where(base > _LEAST, np.exp(base), np.float32(0))
    rows = np.arange(n)
    return _Piece(
        (p * (base - logits + normalizer)).sum(axis=1, dtype=np.float64),
        (normalizer[:, 0] - logits[rows, targets]).astype(np.float64),
        -base[rows, targets].astype(np.float64),
        base.argmax(axis=1) == logits.argmax(axis=1),
    )


def _mean(pieces: list[_Piece]) -> float:
    return float(np.concatenate([piece.kl for piece in pieces]).mean())


def _result(pieces: list[_Piece], n_windows: int, window: int) -> DivergenceResult:
    kl, nll, base_nll = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("kl", "nll", "base_nll")
    )
    same = np.concatenate([piece.same for piece in pieces])
    return DivergenceResult(
        kl=float(kl.mean()),
        kl_error=float(kl.std() / math.sqrt(max(1, len(kl) - 1))),
        kl_median=float(np.median(kl)),
        kl_99=float(np.quantile(kl, 0.99)),
        kl_999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        same_top=float(same.mean()),
        perplexity=math.exp(min(float(nll.mean()), 700)),
        base_perplexity=math.exp(min(float(base_nll.mean()), 700)),
        n_scored=len(kl),
        n_windows=n_windows,
        window=window,
    )
