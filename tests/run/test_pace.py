"""Batches that leave room for a cancel."""

from __future__ import annotations

import pytest

from edgedb.run.pace import Pace


@pytest.mark.parametrize("per_second", [5, 40, 300, 2000, 50000])
def test_batches_settle_at_the_target(per_second: float) -> None:
    pace = Pace(128)
    sizes = []
    for _ in range(12):
        sizes.append(pace.batch)
        pace.measured(pace.batch, pace.batch / per_second)
    assert sizes[0] == 1
    assert sizes[-1] == min(128, max(1, int(per_second * 0.04)))
    assert all(size / per_second < 0.1 for size in sizes if size > 1)


def test_a_pause_is_forgotten() -> None:
    pace = Pace(128)
    for seconds in (3.0, *[1e-4] * 6):
        pace.measured(pace.batch, seconds)
    assert pace.batch == 128
