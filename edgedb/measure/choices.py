"""Multiple choice: which of some endings a model finds likeliest after a text.

The protocol of zero-shot tables: the sum of an ending's log-probabilities decides ("accuracy"), or
that sum over the ending's length in characters ("normalized"). No examples are shown first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import arguments
from ..errors import EdgeDBError
from ..files import read_text
from ..run.engine import Model
from ..strict_json import parse_json
from .evaluate import log_likelihoods


@dataclass(frozen=True)
class Question:
    """``contexts[i] + " " + endings[i]`` is the text of choice i; ``gold`` is the right one."""

    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", _CONTEXTS("contexts", self.contexts))
        object.__setattr__(self, "endings", _ENDINGS("choices", self.endings))
        if not self.endings or len(self.contexts) != len(self.endings):
            raise EdgeDBError(
                f"{len(self.contexts)} contexts for {len(self.endings)} choices, expected as many"
            )
        gold = arguments.whole(0, len(self.endings) - 1)("gold", self.gold)
        object.__setattr__(self, "gold", gold)


_CONTEXTS = arguments.each(arguments.text, "a list of texts")
_ENDINGS = arguments.each(arguments.words, "a list of texts")


@dataclass(frozen=True)
class ChoiceResult:
    """Shares of ``n_questions`` that were answered right."""

    n_questions: int
    accuracy: float
    normalized: float

    @property
    def standard_error(self) -> float:
        """Of ``accuracy``."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.n_questions)


def read_questions(path: Path) -> list[Question]:
    """Questions of a file with a JSON object a line.

    Keys: ``context`` and ``choices``, or ``contexts`` and one ``continuation`` (what is asked is
    then which context goes before it), and ``gold``. Raises ``EdgeDBError`` naming the line.
    """
    text = read_text(path).removesuffix("\n")
    questions = []
    # JSON may hold the other characters at which splitlines breaks.
    for number, line in enumerate(text.split("\n") if text else [], 1):
        where = f"{path}, line {number}"
        entry = parse_json(line, where)
        try:
            questions.append(_question(entry))
        except EdgeDBError as error:
            raise EdgeDBError(f"{where}: no question: {error}") from None
    if not questions:
        raise EdgeDBError(f"{path}: holds no questions")
    return questions


def _question(entry: object) -> Question:
    if not isinstance(entry, dict):
        raise EdgeDBError("expected a JSON object")
    keys = ("contexts", "continuation") if "contexts" in entry else ("context", "choices")
    for key in (*keys, "gold"):
        if key not in entry:
            raise EdgeDBError(f"{key} is missing")
    if "contexts" in entry:
        contexts = _CONTEXTS("contexts", entry["contexts"])
        endings = (arguments.words("continuation", entry["continuation"]),) * len(contexts)
    else:
        endings = _ENDINGS("choices", entry["choices"])
        contexts = (arguments.text("context", entry["context"]),) * len(endings)
    return Question(contexts, endings, entry["gold"])


def multiple_choice(
    model: Model,
    questions: Sequence[Question],
    *,
    progress: Callable[[int, int, float], None] | None = None,
) -> ChoiceResult:
    """Answer ``questions``; ``progress(done, questions, accuracy so far)`` is called after each."""
    if not questions:
        raise EdgeDBError("no questions; give at least one")
    reader = _Reader(model)
    right = np.zeros(2)
    for done, question in enumerate(questions, 1):
        scores = np.array([reader.score(*pair) for pair in zip(*_pairs(question), strict=True)])
        lengths = np.array([len(ending) for ending in question.endings])
        answers = np.array([scores.argmax(), (scores / lengths).argmax()])
        right += answers == question.gold
        if progress is not None:
            progress(done, len(questions), right[0] / done)
    accuracy, normalized = (right / len(questions)).tolist()
    return ChoiceResult(len(questions), accuracy, normalized)


def _pairs(question: Question) -> tuple[list[str], list[str]]:
    # The space belongs to the ending: byte-level tokenizers join it to the word after it.
    return [c.rstrip() for c in question.contexts], [" " + e for e in question.endings]


class _Reader:
    """Scores endings; the cache keeps what one text shares with the next."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = model.network.cache(model.context, model.kv_dtype)
        self.state = model.network.state()
        self.read: list[int] = []

    def score(self, context: str, ending: str) -> float:
        """``log p(ending | context)``; a text too long loses its beginning."""
        whole = self.model.tokenize(context + ending)
        start = max(1, len(self.model.tokenize(context)))
        if start >= len(whole):
            raise EdgeDBError(f"{ending!r}: adds no token to its context")
        cut = max(0, len(whole) - self.model.context)
        whole, start = whole[cut:], max(1, start - cut)
        self._read(whole[: start - 1])
        total = 0.0
        read, targets = whole[start - 1 : -1], np.array(whole[start:])
        for at, logits in self.model.network.passes(read, self.cache, self.state, "all"):
            assert logits is not None, "they were asked for"
            total += float(log_likelihoods(logits, targets[at : at + len(logits)]).sum())
        self.read = whole[:-1]
        return total

    def _read(self, tokens: list[int]) -> None:
        """Make the cache hold exactly ``tokens``."""
        shared = 0
        while shared < min(len(tokens), len(self.read)) and tokens[shared] == self.read[shared]:
            shared += 1
        self.cache.truncate(shared)
        for _ in self.model.network.passes(tokens[shared:], self.cache, self.state, None):
            pass
