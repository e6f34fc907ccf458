"""An answer begins when there is memory for all of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import edgedb
from edgedb import ContextFullError


@pytest.fixture
def model(long_model: Path) -> edgedb.Model:
    return edgedb.load(long_model, context=1000, cache_tokens=1024)  # four pages


def test_who_does_not_fit_waits_until_another_ends(model: edgedb.Model) -> None:
    first = model.stream([5] * 300, max_tokens=200)  # two pages
    next(first)
    got: list[edgedb.Completion] = []
    second = threading.Thread(target=lambda: got.append(model.generate([6] * 600, max_tokens=9)))
    second.start()  # three
    while not model.admission.waiting:
        time.sleep(0.001)
    third = model.generate([7] * 3, max_tokens=3, cancelled=lambda: True)
    assert third.finish_reason == "cancelled" and not got
    assert len([*first]) == 200  # it ends as if nobody waited
    second.join()
    assert len(got[0].tokens) == 9 and not model.admission.waiting


def test_a_cancel_is_heard_while_it_waits(model: edgedb.Model) -> None:
    first = model.stream([5] * 300, max_tokens=200)
    next(first)
    pressed = time.perf_counter() + 0.1
    answer = model.generate([6] * 600, cancelled=lambda: time.perf_counter() > pressed)
    assert answer.finish_reason == "cancelled" and answer.stats.read_tokens == 0
    assert time.perf_counter() - pressed < 0.1


def test_what_never_fits_is_refused(model: edgedb.Model) -> None:
    idle = model.session()
    idle.prefill([5] * 700)  # three pages
    with pytest.raises(ContextFullError, match="not answering"):
        model.generate([6] * 300, max_tokens=10)
    assert len(idle.generate([5] * 700, max_tokens=5).tokens) == 5  # its own pages do not count
    del idle
    assert len(model.generate([6] * 300, max_tokens=10).tokens) == 10
    small = edgedb.load(model.file.path, context=1000, cache_tokens=256)
    with pytest.raises(ContextFullError, match="cache_tokens"):
        small.generate([6] * 300, max_tokens=10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_its_parents_answers(model: edgedb.Model) -> None:
    writes, end = threading.Event(), threading.Event()

    def answer() -> None:
        for _ in model.stream([5] * 700, max_tokens=200):
            writes.set()
            end.wait()

    thread = threading.Thread(target=answer)
    thread.start()
    writes.wait()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            os._exit(len(model.generate([6] * 300, max_tokens=5).tokens))
        finally:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 5


def test_a_follow_up_finds_what_was_read_though_answers_may_take_all_memory(
    model: edgedb.Model,
) -> None:
    """What is kept has room once an answer has ended, and is taken before the next one's memory is
    put aside."""
    prompt = [5, 9, 2, 40, 17, 23, 8]
    first = model.generate(prompt, stop_ids=range(100, model.vocab_size), temperature=0)
    assert model.admission.most == 1024 and len(model.prefixes) > 0
    longer = [*prompt, *first.tokens, 6, 7]
    again = model.generate(longer, max_tokens=1000 - len(longer), temperature=0)
    assert again.stats.read_tokens <= 3
    alone = edgedb.load(model.file.path, context=1000)
    assert again.tokens == alone.generate(longer, temperature=0).tokens
