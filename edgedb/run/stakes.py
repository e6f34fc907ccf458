"""How many guesses of a draft model pay: from how often they are right and how long passes take.

With ``k`` guesses, each right with probability ``p`` if those before it were, a pass gives ``E(k) =
1 + p + ... + p^k`` tokens (Leviathan et al., arXiv 2211.17192, equation 1). It has ``k`` rows more,
and the draft took ``k`` times ``d`` seconds before it. Other sequences of the pass get their tokens
later for it, so that what counts is

    (others + E(k)) / (seconds of a pass with k rows more + k d)

with all times measured, and the best ``k`` is taken. Where that is 0 the draft rests, for so long
that what the last guesses lost is a small share of the time, and then it is tried again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .schedule import Times
from .speculative import ALONE, Beside

_TRIALS = (2, 1, 3)  # guesses to try with, one number after the other
_LOSS = 0.015  # of the time, at most, for trials that show that guessing does not pay
_HICCUP = 4  # passes: what takes longer than that for a few guesses is something else
_SHORTEST_REST, _LONGEST_REST = 8, 256  # tokens
_GAIN = 1.01  # times as fast: less is not worth it
_MEMORY = 0.95  # weight of what was known, for each guess that is judged
_STALE = 0.25  # and after a rest
_PRIOR = 2.0  # guesses that what other answers have shown counts for
_RARELY = 64  # passes after which the time without guesses is measured again
_EXPLORE = 16  # rounds after which one guess more or fewer is made than seems best


@dataclass
class Experience:
    """What answers have shown of a draft. Threads share one: a lost update does no harm."""

    right: float = 0.6  # share of guesses that were right
    seconds: float = 0.0  # for one guess; 0: none was made yet
    lost: float = 0.0  # seconds, by the last guesses that did not pay
    drafted: int = 0  # guesses that were read, and those that were right, of all answers
    accepted: int = 0

    def judged(self, is_right: bool) -> None:
        """A guess was right, or not."""
        self.right += 0.02 * (is_right - self.right)

    def took(self, seconds: float) -> None:
        """One guess took so long."""
        old = self.seconds or seconds
        self.seconds = old + 0.2 * (min(seconds, 2 * old) - old)


class Stakes:
    """Decides for one answer."""

    def __init__(self, most: int, times: Times, experience: Experience) -> None:
        """``most``: guesses at once; ``times``: of passes that read them."""
        self.has_rested = False
        self._most, self._times, self._experience = most, times, experience
        self._right = self._judged = 0.0  # guesses; the last ones count most
        self._rest = 0  # tokens to come without guesses
        self._lost = 0.0  # seconds since the last rest
        self._trials = self._rounds = 0
        self._is_trial = not experience.seconds
        self._beside = ALONE

    def size(self, room: int, beside: Beside = ALONE) -> int:
        """How many guesses to make now, up to ``room``."""
        self._beside = beside
        most = min(self._most, room)
        if most < 1:
            return 0
        if self._rest:
            self._rest -= 1
            return 0
        if not beside.sequences and self._times.age(1) >= _RARELY:
            return 0
        # Beside others a trial would cost them time; what is known by then has to do.
        if self._is_trial and not (beside.sequences and self._experience.seconds):
            self._is_trial = False
            self._trials += 1
            best = _TRIALS[(self._trials - 1) % len(_TRIALS)]
        else:
            best = self._best(most)
            if not best:
                self._have_rest()
                return 0
        self._rounds += 1
        if self._rounds % _EXPLORE == 0:
            best += 1 if self._rounds // _EXPLORE % 2 else -1
        return min(max(best, 1), most)

    def judged(self, right: int, read: int, made: int, seconds: float) -> None:
        """Of ``made`` guesses ``read`` were read and the first ``right`` of them right; making and
        reading them took ``seconds``."""
        for is_right in [True] * right + [False] * (right < read):
            self._experience.judged(is_right)
            self._right = _MEMORY * self._right + is_right
            self._judged = _MEMORY * self._judged + 1
        lost = seconds - (right + 1) * self._without
        self._lost += min(lost, _HICCUP * self._without)
        if read < made:  # others had no rows to spare
            self._have_rest()

    @property
    def likely(self) -> float:
        """The probability that a guess is right if those before it were."""
        known = _PRIOR * self._experience.right
        return (self._right + known) / (self._judged + _PRIOR)

    @property
    def _without(self) -> float:
        """Seconds of a pass without guesses."""
        return self._times.expected(self._beside.rows + 1)

    def _best(self, most: int) -> int:
        """The number of guesses that gives most tokens a second; 0 where none pays."""
        rows, p = self._beside.rows + 1, self.likely
        tokens, share = self._beside.sequences + 1.0, 1.0
        best, fastest = 0, _GAIN * tokens / max(self._without, 1e-9)
        for n in range(1, most + 1):
            share *= p
            tokens += share
            seconds = self._times.expected(rows + n) + n * self._experience.seconds
            if tokens > fastest * seconds:
                best, fastest = n, tokens / max(seconds, 1e-9)
        return best

    def _have_rest(self) -> None:
        """Make no guesses until the loss is a small share of the time that has gone by."""
        if self._rounds:
            self._experience.lost = max(0.0, self._lost)
        tokens = math.ceil(self._experience.lost / _LOSS / max(self._without, 1e-9))
        self._rest = min(max(tokens, _SHORTEST_REST), _LONGEST_REST)
        self._lost, self._rounds = 0.0, 0
        self._right, self._judged = _STALE * self._right, _STALE * self._judged
        self._is_trial = self.has_rested = True
