"""What is to be done for questions 1, 3, 4 and 5: teachers, starts and trainings of students.

Every job leaves one record, and a training that several questions ask for is done once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..student import STARTS
from .entropy import GAMMAS
from .teachers import FAMILIES, Shape

# Students by name, beside FDB's and those of ``grids.LEVELS``: pairs of planes of their matrices.
PLANS = {
    "fdb": "1",
    "three planes": "1.5",
    "mixed": "1,layers.{first}=2,layers.{last}=2",
}
# Starts of one pair: what the paper does comes first.
PAPER, FEEDBACK, BLOCKS, NEAREST = "absmax", "feedback", "blocks", "nearest"
COMPARED_STARTS = (*STARTS, FEEDBACK, BLOCKS)
LONG_STARTS = (PAPER, BLOCKS, "weighted", FEEDBACK)
GAMMA = 0.3  # of the trainings that are called DAD
# Of latents, tried on one student before all trainings; the best is everybody's.
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
RATE_SEED = 1000


@dataclass(frozen=True)
class Size:
    """How much of everything; a step is ``batch`` sequences of ``length`` tokens."""

    shape: Shape = field(default_factory=Shape)
    length: int = 256
    batch: int = 128
    teacher_batch: int = 64
    teacher_steps: int = 1500
    steps: tuple[int, ...] = (61, 198, 1984)  # 2M, 6.5M and 65M tokens
    seeds: int = 3
    block_tokens: int = 262144
    block_epochs: int = 6
    calibration: int = 16  # sequences

    @property
    def usual(self) -> int:
        """Steps of every training that is not about its length."""
        return self.steps[1]


SMALL = Size(
    Shape(vocab_size=512, hidden_size=64, n_layers=2, n_heads=2, positions=64),
    length=32, batch=8, teacher_batch=8, teacher_steps=30, steps=(2, 4, 8), seeds=2,
    block_tokens=512, block_epochs=1, calibration=4,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A teacher (no start), a start of a student (no steps), or a training of one; with a ``rate``
    a trial, which is there to choose everybody's."""

    family: str = "llama"
    student: str = ""
    start: str = ""
    gamma: float | None = None
    steps: int = 0
    seed: int = 0
    rate: float = 0.0

    @property
    def kind(self) -> str:
        if self.rate:
            return "trial"
        return "training" if self.steps else "start" if self.start else "teacher"

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        parts = [self.family]
        if self.start:
            parts += [self.student, self.start]
        if self.steps:
            loss = "kl" if self.gamma is None else f"dad-{self.gamma:g}"
            parts += [loss, f"{self.steps} steps", f"seed {self.seed}"]
        if self.rate:
            parts.append(f"rate {self.rate:g}")
        return "/".join(parts)

    @property
    def begin(self) -> Job:
        """The start of a training."""
        return Job(self.family, self.student, self.start)

    def needs(self, size: Size) -> list[Job]:
        """What is to be done before."""
        teacher = Job(self.family)
        if self.kind == "training":
            return [teacher, *trials(size), self.begin]
        return [teacher, self.begin] if self.rate else [teacher] if self.start else []

    @property
    def file(self) -> str:
        """Its weights, where others need them."""
        kind = {"teacher": ".weights", "start": ".pt"}.get(self.kind, ".json")
        return self.key.replace("/", "-").replace(" ", "-") + kind


def trials(size: Size) -> list[Job]:
    """One student at several rates, in an order of text that no other training has."""
    return [Job("llama", "fdb", "weighted", None, size.usual, RATE_SEED, rate) for rate in RATES]


def architectures(size: Size) -> Iterator[Job]:
    """1: rounded to nearest, FDB's start, FDB + KL, FDB + DAD in every family."""
    for family in FAMILIES:
        yield Job(family, "fdb", NEAREST)
        for seed in range(size.seeds):
            for gamma in (None, GAMMA):
                yield Job(family, "fdb", "weighted", gamma, size.usual, seed)


def elsewhere(size: Size) -> Iterator[Job]:
    """3: KL and DAD for other students."""
    for seed in range(size.seeds):
        for student in ("ternary", "three planes", "mixed"):
            for gamma in (None, GAMMA):
                yield Job("llama", student, "weighted", gamma, size.usual, seed)


def starts(size: Size) -> Iterator[Job]:
    """4: the starts of one pair, and how long a training remembers them."""
    for seed in range(size.seeds):
        for steps in size.steps[:2]:
            for start in COMPARED_STARTS:
                yield Job("llama", "fdb", start, None, steps, seed)


def long_starts(size: Size) -> Iterator[Job]:
    """4, the longest trainings: one seed."""
    for start in LONG_STARTS:
        yield Job("llama", "fdb", start, None, size.steps[2])


def gammas(size: Size) -> Iterator[Job]:
    """5: what each gamma moves."""
    for seed in range(size.seeds):
        for gamma in (None, *GAMMAS):
            yield Job("llama", "fdb", "weighted", gamma, size.usual, seed)


QUESTIONS = {
    "long-starts": long_starts,
    "architectures": architectures,
    "starts": starts,
    "elsewhere": elsewhere,
    "gammas": gammas,
}


def jobs(size: Size, questions: tuple[str, ...] = tuple(QUESTIONS)) -> list[Job]:
    """Each once, what others need before them; otherwise in the order of the questions."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        for needed in job.needs(size):
            add(needed)
        found.setdefault(job.key, job)

    for question in questions:
        for job in QUESTIONS[question](size):
            add(job)
    return list(found.values())


def tokens_of(size: Size, steps: int) -> str:
    """In words: 2M, 6.5M."""
    millions = size.batch * size.length * steps / 1e6
    return f"{millions:.2g}M" if millions >= 0.1 else f"{math.ceil(millions * 1000)}k"
