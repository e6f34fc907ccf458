"""Multiple choice without examples (``edgedb eval choices``) by several models, a part at a time.

Whole sets take half an hour of a core and model. The questions of each are put into a seeded order
and cut into parts; all models answer a part before the next begins, so that whatever is
there when a run ends is a fair sample of the same questions for everyone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgedb
from edgedb.errors import EdgeDBError
from edgedb.measure.choices import Question, multiple_choice, read_questions
from tools.weights import sha256_of

from .rows import Row, Rows

PARTS, SEED = 20, 1
# Named as the files are, with what is reported of each: the sum of log-probabilities decides, or
# that sum for the ending's length.
TASKS = {
    "piqa": "accuracy",
    "arc_easy": "accuracy",
    "arc_challenge": "normalized",
    "hellaswag2000": "normalized",
    "winogrande": "accuracy",
    "boolq": "accuracy",
}
KIND = "zero-shot"


def parts(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions in ``PARTS`` parts of a seeded order."""
    order = np.random.default_rng(SEED).permutation(len(questions))
    return [[questions[i] for i in part] for part in np.array_split(order, PARTS)]


def run(
    models: Mapping[str, Path],
    folder: Path,
    rows: Rows,
    *,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Answer everything that ``rows`` does not have yet."""
    tasks = {}
    for task in TASKS:
        if not (path := folder / f"{task}.jsonl").exists():
            raise EdgeDBError(
                f"{path} is not there: the zero-shot questions are no part of this project"
            )
        tasks[task] = parts(read_questions(path))
    loaded = {name: edgedb.load(path, threads=threads) for name, path in models.items()}
    digests = {name: sha256_of([path]) for name, path in models.items()}
    for number in range(PARTS):
        for task, cut in tasks.items():
            for name, model in loaded.items():
                key = {"kind": KIND, "sha256": digests[name], "task": task, "part": number}
                if rows.last(**key):
                    continue
                found = multiple_choice(model, cut[number])
                right = {
                    "accuracy": round(found.accuracy * found.n_questions),
                    "normalized": round(found.normalized * found.n_questions),
                }
                rows.add({**key, "model": name, "n": found.n_questions, **right})
        progress(f"zero-shot: part {number + 1} of {PARTS}")


@dataclass(frozen=True)
class Score:
    """Of one model on one task: ``right`` of ``n`` answers."""

    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.share * (1 - self.share) / self.n)


def scores(rows: Sequence[Row]) -> dict[str, dict[str, Score]]:
    """By model and task, over the parts that every model has answered of all tasks."""
    rows = [row for row in rows if row["kind"] == KIND]
    answered = {(row["model"], row["task"], row["part"]): row for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))
    common = [
        part
        for part in range(PARTS)
        if all((name, task, part) in answered for name in names for task in TASKS)
    ]
    return {
        name: {
            task: Score(
                sum(answered[name, task, part][measure] for part in common),
                sum(answered[name, task, part]["n"] for part in common),
            )
            for task, measure in TASKS.items()
        }
        for name in names
        if common
    }
