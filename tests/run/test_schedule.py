"""The next pass: streams first, prompts in turn, in chunks that hold up no stream."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from edgedb.ops.sequences import MAX_ROWS
from edgedb.run.schedule import QUANTUM, SLOWEST, Place, Schedule, Times


@dataclass
class One:
    n: int
    is_stream: bool = False
    most: int = MAX_ROWS
    place: Place = field(default_factory=Place)

    @property
    def tokens(self) -> range:
        return range(self.n)


def stream(n: int = 1) -> One:
    return One(n, is_stream=True)


def seconds(rows: int) -> float:
    """A pass of a model whose weights take as long to read as 16 rows to compute."""
    return 0.1 + 0.1 * rows / 16


def measured(*rows: int) -> Schedule:
    schedule = Schedule()
    for n in rows:
        schedule.times.measured(n, seconds(n))
    return schedule


def test_a_prompt_alone_takes_all_rows() -> None:
    assert Schedule().plan([One(300)]) == [(0, MAX_ROWS)]
    assert Schedule().plan([One(5)]) == [(0, 5)]
    assert Schedule().plan([One(300, most=7)]) == [(0, 7)]  # it wants to be asked in between


def test_streams_come_first_and_together() -> None:
    chosen = measured(5, 40).plan([One(300), stream(), stream(4)])
    assert chosen[:2] == [(1, 1), (2, 4)] and chosen[2][0] == 0
    many = Schedule().plan([stream(50) for _ in range(4)])
    assert many == [(0, 50), (1, 50)]  # the others come next


def test_the_time_without_prompts_is_measured_before_any_is_read_beside_streams() -> None:
    waiting = [stream(), One(300)]
    assert Schedule().plan(waiting) == [(0, 1)]
    assert len(measured(1).plan(waiting)) == 2


def test_no_token_takes_more_than_twice_its_time() -> None:
    schedule, slowest = Schedule(), 0.0
    for streams in (1, 4, 16):
        waiting = [*(stream() for _ in range(streams)), One(10**6)]
        rows = [0]
        for _ in range(30):
            rows.append(sum(n for _, n in schedule.plan(waiting)))
            slowest = max(slowest, seconds(rows[-1]) / seconds(streams))
            schedule.times.measured(rows[-1], seconds(rows[-1]))
        assert max(rows) > streams + 10  # and none is held up for nothing
    assert 1.8 < slowest <= SLOWEST


def test_prompts_take_turns() -> None:
    waiting = [One(10**6) for _ in range(3)]
    schedule, read = Schedule(), [0, 0, 0]
    for _ in range(30):
        for i, n in schedule.plan(waiting):
            read[i] += n
        assert max(read) - min(read) <= 2 * QUANTUM
    assert sum(read) == 30 * MAX_ROWS


def test_a_small_share_goes_to_one_prompt_until_its_quantum_is_read() -> None:
    waiting = [stream(), One(10**6), One(10**6)]
    schedule = measured(1, 17)  # twice the time of one row
    turns: list[int] = []
    for _ in range(12):
        chosen = [(i, n) for i, n in schedule.plan(waiting) if i]
        assert sum(n for _, n in chosen) <= 17
        turns += [i for i, _ in chosen]
    assert set(turns) == {1, 2} and any(a == b for a, b in itertools.pairwise(turns))


def test_times_lie_between_those_that_were_measured() -> None:
    times = measured(1, 33).times
    assert times.expected(1) == seconds(1)
    assert abs(times.expected(17) - seconds(17)) < 1e-9
    assert times.expected(66) == 2 * seconds(33)
    assert Times().expected(5) == 0
