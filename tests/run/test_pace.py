"""Passes that leave room for a cancel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgedb.run.pace import TARGET_SECONDS, Pace, rows_within
from edgedb.run.schedule import Times


def settled(seconds: Callable[[int], float], passes: int = 40) -> tuple[list[int], Times]:
    """Rows of one pass after the other, each of which takes ``seconds`` of its rows."""
    times, found = Times(), []
    for _ in range(passes):
        found.append(rows_within(times, 128))
        times.measured(found[-1], seconds(found[-1]))
    return found, times


@pytest.mark.parametrize("per_second", [5, 40, 300, 2000, 50000])
def test_rows_that_cost_alike_settle_at_the_target(per_second: float) -> None:
    found, _ = settled(lambda n: n / per_second)
    assert found[0] == 1
    limit = max(TARGET_SECONDS, min(0.09, 2 / per_second))
    assert found[-1] == min(128, max(1, int(per_second * limit)))
    assert all(n / per_second < 0.1 for n in found if n > 1)


@pytest.mark.parametrize(
    ("weights", "row", "settles"),
    [(0.066, 0.012, 3), (0.066, 0.002, 13), (0.056, 0.0001, 128), (0.2, 0.005, 1)],
)
def test_rows_beside_weights_that_take_longer(weights: float, row: float, settles: int) -> None:
    """As of 7B: one row takes more than the target, and some more hardly anything."""
    found, _ = settled(lambda n: weights + row * (n - 1))
    assert found[-1] == settles
    slow = [weights + row * (n - 1) for n in found[-20:]]
    assert max(slow) <= max(0.09, weights)


def test_what_is_known_counts_for_the_next_prompt() -> None:
    found, times = settled(lambda n: 0.01 + n / 5000)
    assert rows_within(times, 128) == found[-1] > 100
    assert rows_within(times, 7) == 7


def test_a_pause_is_forgotten() -> None:
    _, times = settled(lambda n: n / 5000)
    for _ in range(3):
        times.measured(128, 3.0)
    assert rows_within(times, 128) < 128
    for _ in range(400):
        rows = rows_within(times, 128)
        times.measured(rows, rows / 5000)
    assert rows_within(times, 128) == 128


def test_a_machine_that_others_have_begun_to_use() -> None:
    """However fast passes were before."""
    _, times = settled(lambda n: n / 50000)
    pace, found = Pace(times, 128), []
    for _ in range(20):
        found.append(pace.batch)
        times.measured(found[-1], found[-1] / 200)
        pace.measured(found[-1], found[-1] / 200)
    assert found[0] == 16
    assert max(found) / 200 < 0.1 and min(found[1:]) >= 8

    quick = Pace(times, 128)
    for rows in (16, 64, 128):
        assert quick._bound == rows
        quick.measured(rows, 0.01)
