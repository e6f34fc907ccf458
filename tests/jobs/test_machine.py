"""Lines answered on one machine."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from edgedb.jobs.answering import Cancelled
from edgedb.jobs.lines import Line, parse_line
from edgedb.jobs.machine import answer_here
from edgedb.jobs.records import Record

LINES = [parse_line(i, "{}") for i in range(1, 9)]


def test_as_many_at_a_time_as_asked_for() -> None:
    together = threading.Barrier(3)

    def answer(line: Line, cancelled: Callable[[], bool]) -> Record:
        if line.number <= 6:
            together.wait(10)  # two rounds of three
        return Record(line.number, "", False)

    found = [record.number for record in answer_here(answer, LINES, 3)]
    assert sorted(found) == list(range(1, 9))
    assert sorted(found[:3]) == [1, 2, 3]  # begun in their order


def test_who_leaves_early_gives_the_others_up() -> None:
    begun, before = threading.Semaphore(0), threading.active_count()
    given_up: list[int] = []

    def answer(line: Line, cancelled: Callable[[], bool]) -> Record:
        if line.number == 1:
            assert begun.acquire(timeout=10)
            return Record(1, "", False)
        begun.release()
        while not cancelled():
            threading.Event().wait(0.001)
        given_up.append(line.number)
        raise Cancelled

    records = answer_here(answer, LINES, 2)
    assert next(records).number == 1
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert given_up and len(given_up) <= 2
    assert threading.active_count() <= before
