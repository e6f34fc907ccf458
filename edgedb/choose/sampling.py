"""Choosing the next token from logits: the same choice on every CPU for the same seed.

The order is that of llama.cpp, after the caller's own processors: logit bias; repetition, presence
and frequency penalties; DRY; a grammar's mask; top-k; typical-p; top-p; min-p; temperature; one
random number. With mirostat, temperature follows the penalties and mirostat takes the place of the
rest. Probabilities are those of the logits before the temperature until the last step.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .. import arguments
from ..errors import EdgeDBError
from ..gate import gate
from ..hints import hinted
from ..ops.selection import Floats, Ids, NumpySelection, Selection
from .candidates import Candidates, Limits, draw, surprise
from .penalties import add_bias, penalize_repetition, penalize_sequences

Processor = Callable[[Ids, Floats], Floats]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. Values out of range raise ``EdgeDBError``."""

    temperature: float = 0.7  # 0 takes the most likely token, after the penalties
    top_k: int = 40  # only the k most likely tokens; 0 = all
    typical_p: float = 1.0  # only this much probability, of tokens of average surprise; 1 = all
    top_p: float = 0.95  # only the smallest set of tokens with this much probability; 1 = all
    min_p: float = 0.05  # only tokens this likely relative to the most likely one; 0 = all
    repetition_penalty: float = 1.0  # divides the odds of recent tokens; 1 = off
    presence_penalty: float = 0.0  # taken off the logit of every recent token
    frequency_penalty: float = 0.0  # taken off for each time that it occurs
    repetition_window: int = 64  # tokens that count as recent for these three; 0 = none
    dry_multiplier: float = 0.0  # size of the penalty for repeating a sequence; 0 = off
    dry_base: float = 1.75  # grows by this factor with each token of the repetition
    dry_allowed_length: int = 2  # from so many repeated tokens on
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")  # a token with one ends a sequence
    mirostat: int = 0  # 2 = on: holds the surprise of the text at mirostat_tau
    mirostat_tau: float = 5.0  # bits a token
    mirostat_eta: float = 0.1  # how quickly it follows
    logit_bias: Mapping[int, float] = field(
        default_factory=dict, hash=False
    )  # -inf forbids a token
    seed: int | None = None  # None: another one each time

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(name, getattr(self, name)))


SamplingParams.__init__ = hinted(SamplingParams.__init__)  # type: ignore[method-assign]

_RULES: dict[str, arguments.Rule[Any]] = {
    "temperature": arguments.number(0),
    "top_k": arguments.whole(),
    "typical_p": arguments.number(0, 1),
    "top_p": arguments.number(0, 1),
    "min_p": arguments.number(0, 1),
    "repetition_penalty": arguments.number(arguments.SMALLEST),
    "presence_penalty": arguments.number(),
    "frequency_penalty": arguments.number(),
    "repetition_window": arguments.whole(),
    "dry_multiplier": arguments.number(0),
    "dry_base": arguments.number(1),
    "dry_allowed_length": arguments.whole(),
    "dry_breakers": arguments.each(arguments.words, "a list of texts"),
    "mirostat": arguments.choice(0, 2),
    "mirostat_tau": arguments.number(arguments.SMALLEST),
    "mirostat_eta": arguments.number(0, 1),
    "logit_bias": arguments.pairs(
        arguments.token_id, arguments.number(also=-math.inf), "a mapping of token ids to numbers"
    ),
    "seed": arguments.optional(arguments.whole()),
}


class Constraint(Protocol):
    """What the next token may be, as a grammar knows it."""

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""

    def forbid(self, scores: Floats) -> None:
        """Set the scores of all tokens that may not come next to -inf."""

    def accept(self, token: int) -> None:
        """``token`` was chosen."""


class Sampler:
    """Draws tokens under ``params``; keeps the state of the random numbers between calls."""

    def __init__(
        self,
        params: SamplingParams,
        ops: Selection | None = None,
        *,
        processors: Sequence[Processor] = (),
        breakers: np.ndarray | None = None,
        exempt: np.ndarray | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """``ops`` selects (default: numpy; the choice is the same with every backend).

        ``processors`` take the ids so far, int32 ``(n,)``, and the logits, float32 ``(vocab,)``,
        which they may change, and return logits. ``breakers``, bool ``(vocab,)``, are the tokens
        that end a sequence for DRY, ``exempt`` those that no penalty for repetition touches:
        ``breaker_mask`` and ``special_mask`` of ``penalties.py``.
        """
        self.params = params
        self.seed = secrets.randbits(63) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._ops: Selection = ops or NumpySelection()
        self._processors = tuple(processors)
        self._breakers = breakers
        self._exempt = exempt
        self._constraint = constraint
        self._bias = (
            np.array(list(params.logit_bias), np.intp),
            np.array(list(params.logit_bias.values()), np.float32),
        )
        self._scratch = np.empty(0, np.float32)  # the changed logits
        self._mu = 2 * params.mirostat_tau
        self._limits = Limits(params.top_k, params.typical_p, params.top_p, params.min_p)

    def sample(self, logits: Floats, history: Sequence[int] | Ids = ()) -> int:
        """The next token after ``history``, from ``logits``: float32 ``(vocab,)``, left as is.

        Of equally likely tokens the lowest id comes first. Raises ``EdgeDBError`` if a logit is
        NaN or +inf, or if all are -inf.
        """
        scores = self._scores(logits, history)
        with gate.lock:  # parts of numpy are C++
            return self._choose(scores)

    def _choose(self, scores: Floats) -> int:
        if self.params.temperature == 0:
            ids, values = self._ops.largest(scores, 1)
            _check_best(float(values[0]))
            token = int(ids[0])
        elif self.params.mirostat:
            token = self._mirostat(scores)
        else:
            found = Candidates.of(scores, self._limits, self._ops)
            _check_best(found.top)
            weights = self._ops.softmax_weights(found.values, found.top, self.params.temperature)
            token = int(found.ids[draw(weights, self._random.random())])
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    @property
    def finished(self) -> bool:
        """Whether a constraint lets nothing follow what was chosen."""
        return self._constraint is not None and self._constraint.finished

    @property
    def constrained(self) -> bool:
        """Whether a grammar says what may come next."""
        return self._constraint is not None

    @property
    def unpredictable(self) -> bool:
        """Whether any token may become the best: by a processor, a constraint, DRY, mirostat."""
        others = self._constraint is not None or self.params.dry_multiplier or self.params.mirostat
        return bool(self._processors or others)

    def _scores(self, logits: Floats, history: Sequence[int] | Ids) -> Floats:
        """``logits`` after processors, bias, penalties and mask; a copy if anything changed."""
        params = self.params
        recent = history[-params.repetition_window :] if params.repetition_window else ()
        penalized = len(recent) and (
            params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        )
        repeated = params.dry_multiplier and len(history)
        changed = self._processors or params.logit_bias or self._constraint is not None
        if not (penalized or repeated or changed):
            return logits
        if self._scratch.shape != logits.shape:
            self._scratch = np.empty_like(logits)
        scores = self._scratch
        np.copyto(scores, logits)
        for processor in self._processors:
            scores = _checked(processor(np.array(history, np.int32), scores), logits)
        with gate.lock:  # not around the processors, which are anybody's code
            add_bias(scores, *self._bias)
            if penalized:
                penalize_repetition(
                    scores,
                    recent,
                    params.repetition_penalty,
                    params.presence_penalty,
                    params.frequency_penalty,
                    self._exempt,
                )
            if repeated:
                penalize_sequences(
                    scores,
                    np.asarray(history, np.int32),
                    params.dry_multiplier,
                    params.dry_base,
                    params.dry_allowed_length,
                    self._breakers,
                    self._exempt,
                )
            if self._constraint is not None:
                self._constraint.forbid(scores)
        return scores

    def _mirostat(self, scores: Floats) -> int:
        """Mirostat 2 (arXiv 2007.14966, algorithm 2): no token of more than mu bits of surprise."""
        top = float(scores.max())
        _check_best(top)
        found, weights = Candidates.below_surprise(
            scores, top, self.params.temperature, self._mu, self._ops
        )
        chosen = draw(weights, self._random.random())
        error = surprise(weights, chosen) - self.params.mirostat_tau
        self._mu -= self.params.mirostat_eta * error
        return int(found[chosen])


def _check_best(best: float) -> None:
    if best == -math.inf:
        raise EdgeDBError("no token is left to choose: all logits are -inf, none is finite")
    if not math.isfinite(best):
        raise EdgeDBError(
            "the model's output is not finite; its file or the prompt's numbers are damaged"
        )


def _checked(scores: object, logits: Floats) -> Floats:
    if not isinstance(scores, np.ndarray) or scores.shape != logits.shape:
        raise EdgeDBError(f"a processor must return logits of shape {logits.shape}")
    return np.array(scores, np.float32)
