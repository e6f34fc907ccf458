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
    n_guesses: int = 0
    ends: bool = False
    place: Place = field(default_factory=Place)

    @property
    def tokens(self) -> range:
        return range(self.n)


def stream(n: int = 1, n_guesses: int = 0) -> One:
    return One(n + n_guesses, is_stream=True, n_guesses=n_guesses)


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


def test_what_is_known_of_about_as_many_streams_is_enough() -> None:
    waiting = [*(stream() for _ in range(16)), One(300)]
    assert len(measured(14, 40).plan(waiting)) == 17
    assert len(measured(13, 40).plan(waiting)) == 16


def test_many_who_wait_for_a_first_token_count_for_more_than_a_few_who_write() -> None:
    def rows(streams: int, prompts: int, ends: bool = True) -> int:
        waiting = [stream() for _ in range(streams)]
        waiting += [One(300, ends=ends) for _ in range(prompts)]
        return sum(n for _, n in measured(streams, 128).plan(waiting))

    assert rows(4, 1) == rows(4, 4) == 24  # twice the time of four
    assert rows(4, 8) == 64  # four times
    assert rows(1, 15) == MAX_ROWS
    assert rows(4, 8, ends=False) == 24  # long ones have much to read yet


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


def test_a_stream_alone_has_all_its_guesses() -> None:
    assert Schedule().plan([stream(n_guesses=20)]) == [(0, 21)]
    assert Schedule().plan([stream(n_guesses=500)]) == [(0, MAX_ROWS)]


def test_guesses_get_the_rows_that_nobody_else_wants() -> None:
    """Two streams may take twice their time together: 18 rows more. First guesses come first."""
    schedule = measured(2, 40)
    both = [stream(n_guesses=3), stream(n_guesses=30)]
    assert schedule.plan(both) == [(0, 4), (1, 16)]
    # A prompt goes before them, and takes all of that.
    assert dict(schedule.plan([*both, One(300)])) == {0: 1, 1: 1, 2: 18}
    assert dict(schedule.plan([*both, One(10)])) == {0: 4, 1: 6, 2: 10}
    # Where the streams' own time is not known, it is measured first.
    assert Schedule().plan(both) == [(0, 1), (1, 1)]


def test_guesses_take_no_stream_out_of_a_pass() -> None:
    many = [stream(n_guesses=20) for _ in range(MAX_ROWS)]
    assert measured(MAX_ROWS).plan(many) == [(i, 1) for i in range(MAX_ROWS)]


def test_a_pass_that_somebody_else_held_up_is_hardly_seen() -> None:
    times = measured(1).times
    times.measured(1, 100 * seconds(1))
    assert times.expected(1) < 1.5 * seconds(1)
    for _ in range(20):  # but what stays so is
        times.measured(1, 100 * seconds(1))
    assert times.expected(1) > 50 * seconds(1)


def test_how_long_ago_a_pass_was_measured() -> None:
    times = measured(3, 1, 2).times
    assert times.age(1) == 2 and times.age(3) == 3 and times.age(9) > 10**6
