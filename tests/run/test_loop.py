"""The loop of all sessions: who computes, who waits, and what happens to others when one goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgedb
from edgedb.model.kvcache import KVCache
from edgedb.model.network import Network, Reading

OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
PROMPTS = [[5, 9, 40], [17, 23, 8, 60], [61, 62], [70, 71, 72, 73]]


@pytest.fixture
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=400)


class Held:
    """Passes that wait until they are let go; of each, the rows of every sequence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[int]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        read = Network.read

        def slowly(network: Network, readings: list[Reading], state: Any) -> Any:
            self.seen.append([len(reading.tokens) for reading in readings])
            self.begun.release()
            assert self.go.wait(30)
            return read(network, readings, state)

        monkeypatch.setattr(Network, "read", slowly)


def start(*work: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    return threads


def until(condition: Callable[[], bool]) -> None:
    end = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < end
        time.sleep(0.001)


def test_who_comes_while_one_computes_goes_into_the_next_pass_together(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [model.generate(prompt, **OPTIONS).text for prompt in PROMPTS]
    held = Held(monkeypatch)
    got: dict[int, str] = {}
    work = [
        lambda i=i: got.update({i: model.generate(PROMPTS[i], **OPTIONS).text}) for i in range(4)
    ]
    threads = start(work[0])
    assert held.begun.acquire(timeout=30)
    threads += start(*work[1:])
    until(lambda: len(model.loop._waiting) == 3)
    held.go.set()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == expected
    assert [len(seen) > 1 for seen in held.seen[:2]] == [False, True]
    assert max(map(len, held.seen)) == 4


def test_a_cancel_is_heard_while_another_computes(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    (first,) = start(lambda: model.generate(PROMPTS[0], **OPTIONS))
    assert held.begun.acquire(timeout=30)
    pressed = time.perf_counter() + 0.05
    session = model.session()
    answer = session.generate(PROMPTS[1], cancelled=lambda: time.perf_counter() > pressed)
    assert answer.finish_reason == "cancelled" and session.position == 0
    assert time.perf_counter() - pressed < 0.1
    held.go.set()
    first.join()
    assert session.generate(PROMPTS[1], **OPTIONS).finish_reason == "length"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_others_go_on_when_the_leader_is_interrupted(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As Ctrl-C does it: before the pass, or when it is done and nobody has anything of it."""
    expected = [model.generate(prompt, **OPTIONS).text for prompt in PROMPTS]
    read, interrupts = Network.read, iter(range(2))
    led: list[threading.Thread] = []
    all_there = threading.Event()

    def interrupted(network: Network, readings: list[Reading], state: Any) -> Any:
        if not all_there.is_set():
            until(lambda: len(model.loop._waiting) + len(model.loop._computing) == 4)
            all_there.set()
        if moment == "after":
            found = read(network, readings, state)
        if len(readings) > 1 and next(interrupts, None) is not None:
            led.append(threading.current_thread())
            raise KeyboardInterrupt
        return found if moment == "after" else read(network, readings, state)

    monkeypatch.setattr(Network, "read", interrupted)
    got: dict[int, str] = {}
    kept: list[BaseException] = []  # with all that is left of the frames

    def answer(i: int) -> None:
        session = model.session()
        while i not in got:
            try:
                got[i] = session.generate(PROMPTS[i], **OPTIONS).text
            except KeyboardInterrupt as interrupt:
                kept.append(interrupt)

    threads = start(*(lambda i=i: answer(i) for i in range(4)))  # type: ignore[misc]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [got[i] for i in range(4)] == expected
    assert len(kept) == len(led) == 2


def test_an_error_is_for_all_of_the_pass_and_nobody_else(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Network.read

    def broken(network: Network, readings: list[Reading], state: Any) -> Any:
        if any(61 in reading.tokens for reading in readings):
            raise RuntimeError("broken")
        return read(network, readings, state)

    monkeypatch.setattr(Network, "read", broken)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate(PROMPTS[2], **OPTIONS)
    assert model.generate(PROMPTS[0], **OPTIONS).finish_reason == "length"


def test_who_gets_no_memory_fails_alone(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(PROMPTS[0], **OPTIONS).text
    poor, reserve = model.session(), KVCache.reserve

    def refused(cache: KVCache, n: int) -> None:
        if cache is poor._reader.cache:
            raise MemoryError
        reserve(cache, n)

    monkeypatch.setattr(KVCache, "reserve", refused)
    held = Held(monkeypatch)
    got: list[str] = []
    failed: list[MemoryError] = []

    def fail() -> None:
        try:
            poor.generate(PROMPTS[1], **OPTIONS)
        except MemoryError as error:
            failed.append(error)

    threads = start(lambda: got.append(model.generate(PROMPTS[0], **OPTIONS).text))
    assert held.begun.acquire(timeout=30)
    threads += start(fail, lambda: got.append(model.generate(PROMPTS[0], **OPTIONS).text))
    until(lambda: len(model.loop._waiting) == 2)
    held.go.set()
    for thread in threads:
        thread.join()
    assert got == [expected] * 2 and len(failed) == 1


def test_texts_are_embedded_beside_answers(model: edgedb.Model) -> None:
    texts = ["One, two", "Once upon a time there was a girl. " * 9]
    vectors, text = model.embed(texts), model.generate(PROMPTS[0], **OPTIONS).text
    found: list[bool] = []
    threads = start(
        *[lambda: found.append(bool((model.embed(texts) == vectors).all()))] * 3,
        *[lambda: found.append(model.generate(PROMPTS[0], **OPTIONS).text == text)] * 3,
    )
    for thread in threads:
        thread.join()
    if model.ops.name == "native":
        assert found == [True] * 6
