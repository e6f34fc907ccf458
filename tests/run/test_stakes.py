"""How many guesses a draft makes, by invented times: fewer where they are rarely right or dear."""

from __future__ import annotations

import random

import pytest

from edgedb.run.schedule import Times
from edgedb.run.speculative import Beside
from edgedb.run.stakes import Experience, Stakes


class Run:
    """An answer whose guesses are right with probability ``right``, by a clock of its own."""

    def __init__(
        self,
        right: float,
        *,
        draft: float = 0.1,
        row: float = 0.1,
        experience: Experience | None = None,
        others: Beside = Beside(0, 0),  # noqa: B008
        is_noisy: bool = False,
    ) -> None:
        """draft, row: seconds of a guess and of one more row of a pass, which takes 1 by itself.
        is_noisy: a clock that goes wrong by 15%, and once in a hundred times is five times too
        late; what counts is the time without that."""
        self.right, self.draft, self.row, self.others = right, draft, row, others
        self.times = Times()
        self.experience = experience or Experience()
        self.stakes = Stakes(16, self.times, self.experience)
        self.seconds, self.tokens = 0.0, 0
        self.sizes: list[int] = []
        self._random = random.Random(1)
        self._is_noisy = is_noisy

    def pass_of(self, n: int) -> float:
        return 1 + self.row * (self.others.rows + n)

    def read_off(self, seconds: float) -> float:
        """What the clock says of ``seconds``."""
        if not self._is_noisy:
            return seconds
        late = 5 if self._random.random() < 0.01 else 1
        return seconds * self._random.lognormvariate(0, 0.15) * late

    def write(self, n_tokens: int) -> Run:
        """So many tokens more."""
        end = self.tokens + n_tokens
        while self.tokens < end:
            n = self.stakes.size(100, self.others)
            draft = self.read_off(self.draft)
            if n:
                self.experience.took(draft)
            took = self.read_off(self.pass_of(n))
            self.times.measured(self.others.rows + 1 + n, took)
            hits = 0
            while hits < n and self._random.random() < self.right:
                hits += 1
            if n:
                self.stakes.judged(hits, n, n, took + n * draft)
            self.sizes.append(n)
            self.seconds += self.pass_of(n) + n * self.draft
            self.tokens += hits + 1
        return self

    @property
    def gain(self) -> float:
        """Times as fast as without guesses."""
        return self.tokens * self.pass_of(0) / self.seconds


@pytest.mark.parametrize(
    ("right", "at_least"), [(0.0, 0.97), (0.3, 0.97), (0.5, 1.2), (0.7, 1.5), (0.9, 2.2)]
)
def test_it_gains_where_it_can_and_loses_little_where_not(right: float, at_least: float) -> None:
    assert Run(right).write(1000).gain > at_least


@pytest.mark.parametrize("right", [0.0, 0.3, 0.7, 0.9])
def test_a_busy_machine_changes_little(right: float) -> None:
    quiet, noisy = Run(right).write(3000), Run(right, is_noisy=True).write(3000)
    assert noisy.gain > 0.85 * quiet.gain and noisy.gain > 0.97


@pytest.mark.parametrize("n_tokens", [32, 64, 128, 400])
def test_a_draft_that_is_never_right_costs_little_from_the_beginning(n_tokens: int) -> None:
    """Also where each of its guesses costs a third of a pass, and rows are dear."""
    first = Run(0.0, draft=0.3, row=0.4).write(n_tokens)
    assert first.gain > min(0.98, 1 - 4 / n_tokens)
    later = Run(0.0, draft=0.3, row=0.4, experience=first.experience).write(n_tokens)
    assert later.gain > 0.97


def test_it_makes_as_many_guesses_as_are_best() -> None:
    """Against every fixed number of them."""
    for right in (0.4, 0.6, 0.8, 0.95):
        for row in (0.05, 0.2):
            expected = max(
                sum(right**j for j in range(n + 1)) / (1 + (row + 0.1) * n) for n in range(17)
            )
            assert Run(right, row=row).write(4000).gain > 0.9 * expected


def test_it_rests_when_guesses_become_worse_and_comes_back_when_they_are_better() -> None:
    run = Run(0.9)
    run.write(300)
    assert sum(map(bool, run.sizes[-40:])) > 35
    run.right = 0.05
    run.write(400)
    assert sum(map(bool, run.sizes[-200:])) < 20
    assert any(run.sizes[-200:]), "it is tried from time to time"
    run.right = 0.9
    run.write(1500)
    assert sum(map(bool, run.sizes[-40:])) > 35


def test_it_rests_when_the_draft_becomes_slow() -> None:
    run = Run(0.7)
    run.write(200)
    run.draft = 2.0
    run.write(400)
    assert sum(map(bool, run.sizes[-100:])) < 10


def test_beside_others_rows_are_dearer() -> None:
    """Eight other sequences wait for what this one gains."""
    alone, beside = Run(0.6, row=0.1), Run(0.6, row=0.1, others=Beside(8, 8))
    alone.write(500)
    beside.write(500)
    assert sum(alone.sizes) / len(alone.sizes) > 1
    assert sum(beside.sizes) / len(beside.sizes) < 0.2


def test_no_rows_to_spare_is_a_reason_to_rest() -> None:
    times, experience = Times(), Experience(right=0.9, seconds=0.1)
    times.measured(1, 1.0)
    times.measured(5, 1.1)
    stakes = Stakes(16, times, experience)
    n = stakes.size(100)
    assert n > 1
    stakes.judged(0, 0, n, 1.4)
    assert [stakes.size(100) for _ in range(8)] == [0] * 8


def test_no_more_than_there_is_room_for() -> None:
    run = Run(1.0)
    run.write(100)
    assert run.stakes.size(3) <= 3 and run.stakes.size(0) == 0
    assert max(run.sizes) <= 16
