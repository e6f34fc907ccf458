"""Question 5: entropy, error and frequency of tokens.

Which of two entropies foretells a student's error better, the teacher's or its own; and how much
probability it gives to frequent tokens. Frequencies are cut into tenths of a text, not of a
vocabulary: the first holds the few most frequent tokens that a tenth of it consists of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..compare import Recorded
from ..decoder import Decoder
from ..predictions import Predictions, by_entropy, predict
from ..quality import exponential
from ..text import load_ids

Floats = NDArray[np.float64]
TENTHS = 10
GAMMAS = (0.0, 0.1, 0.3, 0.5, 1.0)


def frequencies(folder: Path, vocab_size: int) -> Floats:
    """How often each token stands in a corpus, ``[vocabulary]``."""
    streams = [np.asarray(load_ids(path, 1)) for path in sorted(folder.glob("real-*.npy"))]
    return np.bincount(np.concatenate(streams), minlength=vocab_size).astype(np.float64)


def tenths(counts: Floats) -> NDArray[np.int64]:
    """The tenth of the text, 0 to 9, that each token ``[vocabulary]`` falls into by its frequency.

    A token that is more than a tenth of the text fills its own and the next is shorter.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    found = np.empty(len(counts), np.int64)
    found[order] = np.minimum((before * TENTHS / counts.sum()).astype(np.int64), TENTHS - 1)
    return found


def mass_by_tenth(per_token: Floats, of: NDArray[np.int64]) -> list[float]:
    """Share of ``per_token [vocabulary]`` in each tenth."""
    sums = np.bincount(of, weights=per_token, minlength=TENTHS)
    return [float(part) for part in sums / sums.sum()]


def ranks(values: Floats) -> Floats:
    """Places of values in their order, equal ones at the mean of theirs."""
    order = np.argsort(values, kind="stable")
    _, first, counts = np.unique(values[order], return_index=True, return_counts=True)
    found = np.empty(len(values))
    found[order] = np.repeat(first + (counts - 1) / 2, counts)
    return found


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's; 0 where one of both does not vary."""
    a, b = ranks(a), ranks(b)
    if not (a.std() and b.std()):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def foretold(of: Predictions, teacher: Predictions) -> dict[str, float]:
    """Rank correlations of a student's KL with what one may know beforehand: either entropy, and
    the twin-entropy weight of each gamma."""
    found = {
        "teacher_entropy": rank_correlation(of.kl, teacher.entropy),
        "student_entropy": rank_correlation(of.kl, of.entropy),
        # Of how much likelier the teacher found what came: an error that no KL went into.
        "added_by_teacher_entropy": rank_correlation(of.nll - teacher.nll, teacher.entropy),
        "added_by_student_entropy": rank_correlation(of.nll - teacher.nll, of.entropy),
    }
    theirs, mine = teacher.entropy.clip(1e-9), of.entropy.clip(1e-9)
    for gamma in GAMMAS[1:-1]:
        found[f"twin_{gamma:g}"] = rank_correlation(of.kl, theirs**gamma * mine ** (1 - gamma))
    return found


class Measured:
    """A teacher's predictions on some texts, ``[windows, tokens]`` each, which students are held
    against."""

    def __init__(self, teacher: Decoder, texts: dict[str, Tensor], counts: Floats) -> None:
        self.recorded = {name: Recorded(teacher, ids) for name, ids in texts.items()}
        self.exact = {name: predict(teacher, there) for name, there in self.recorded.items()}
        self.tenths = tenths(counts)
        self.text = {
            name: np.bincount(ids[:, 1:].numpy().ravel(), minlength=len(counts)).astype(np.float64)
            for name, ids in texts.items()
        }

    def of(self, student: Decoder, *, entropies: bool = False) -> dict[str, dict[str, Any]]:
        """For each text kl, ppl, teacher_ppl and top1 as ``tools.quality`` has them, and all that
        question 5 wants where ``entropies`` are asked for."""
        found: dict[str, dict[str, Any]] = {}
        for name, recorded in self.recorded.items():
            mine, exact = predict(student, recorded), self.exact[name]
            found[name] = {
                "kl": float(mine.kl.mean()),
                "ppl": exponential(float(mine.nll.mean())),
                "teacher_ppl": exponential(float(exact.nll.mean())),
                "top1": float(mine.agrees.mean()),
            }
            if entropies:
                found[name] |= {
                    "entropy": float(mine.entropy.mean()),
                    "teacher_entropy": float(exact.entropy.mean()),
                    "foretold": foretold(mine, exact),
                    "mass": mass_by_tenth(mine.mass, self.tenths),
                    "teacher_mass": mass_by_tenth(exact.mass, self.tenths),
                    "text_mass": mass_by_tenth(self.text[name], self.tenths),
                    "by_entropy": by_entropy(mine, exact),
                }
        return found
