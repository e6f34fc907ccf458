"""Settings of a training, and its learning rate at every step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.options import TrainOptions, schedule


def test_schedule() -> None:
    options = TrainOptions(steps=100, warmup=10, final_share=0.1)
    assert schedule(0, 0, options) == pytest.approx(0.1)
    assert schedule(9, 0, options) == 1
    assert schedule(99, 1, options) == pytest.approx(0.1)
    later = replace(options, first_step=50)
    assert schedule(50, 0.5, later) == pytest.approx(schedule(50, 0.5, options) / 10)
    assert schedule(70, 0.7, later) == schedule(70, 0.7, options)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        TrainOptions(steps=1, batch=8, micro_batch=3)


def test_a_rate_stays_and_then_falls_in_a_line() -> None:
    options = TrainOptions(
        steps=100, warmup=0, final_share=0.1, decay="linear", decay_from=0.2, micro_batch=64
    )
    assert [schedule(0, p, options) for p in (0, 0.1, 0.2)] == [1, 1, 1]
    assert schedule(0, 0.6, options) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule(0, 1, options) == pytest.approx(0.1)
    assert schedule(0, 0.6, replace(options, decay="cosine", decay_from=0.2)) == pytest.approx(0.55)


@pytest.mark.parametrize("change", [{"decay": "steps"}, {"decay_from": 1.0}, {"mode": "planes"}])
def test_settings_without_meaning_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainOptions(steps=1, **change)
