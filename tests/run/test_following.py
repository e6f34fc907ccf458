"""Streams that are read together: who computes chooses their tokens, one ahead of their owners."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_loop import Held, start, until

import edgedb
from edgedb.choose.sampling import Sampler
from edgedb.model.network import Network
from edgedb.run.completion import Chunk
from edgedb.run.request import Request, Sink

PROMPTS = [[5, 9, 40], [17, 23, 8, 60], [61, 62], [70, 71, 72, 73]]
OPTIONS: dict[str, Any] = {"temperature": 0.8, "max_tokens": 12, "seed": 3}


@pytest.fixture
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=400)


class Choices:
    """Which thread chose each token, by the sampler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[int, set[int]] = {}
        sample = Sampler.sample

        def noted(sampler: Sampler, logits: Any, history: Any = ()) -> int:
            self.threads.setdefault(id(sampler), set()).add(threading.get_ident())
            return sample(sampler, logits, history)

        monkeypatch.setattr(Sampler, "sample", noted)


def run(work: list[Any]) -> None:
    threads = start(*work)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def held(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch, work: list[Any]) -> Held:
    """Run ``work``, whose streams are all there before the second pass."""
    passes = Held(monkeypatch)
    threads = start(work[0])
    assert passes.begun.acquire(timeout=30)
    threads += start(*work[1:])
    until(lambda: len(model.loop._waiting) == len(work) - 1)
    passes.go.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return passes


def test_tokens_chosen_by_another_thread_are_those_of_each_alone(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [model.generate(prompt, **OPTIONS) for prompt in PROMPTS]
    chosen = Choices(monkeypatch)
    got: dict[int, Any] = {}
    work = [
        lambda i=i: got.update({i: model.generate(PROMPTS[i], **OPTIONS)})
        for i in range(len(PROMPTS))
    ]
    read = Network.read

    def takes_its_time(network: Network, readings: list[Any], state: Any) -> Any:
        time.sleep(0.02)  # as a large model does: on a busy machine, too, owners are back by then
        return read(network, readings, state)

    monkeypatch.setattr(Network, "read", takes_its_time)
    passes = held(model, monkeypatch, work)
    assert [(got[i].tokens, got[i].text) for i in got] == [
        (alone[i].tokens, alone[i].text) for i in got
    ]
    assert any(len(threads) > 1 for threads in chosen.threads.values())
    assert sum(len(seen) == len(PROMPTS) for seen in passes.seen) >= 6  # nobody is late


def test_a_reader_that_pauses_is_one_token_ahead_at_most_and_holds_nobody_up(
    model: edgedb.Model,
) -> None:
    alone = [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]
    session, slow = model.session(), []
    stream: Iterator[Chunk] = session.generate(PROMPTS[0], stream=True, **OPTIONS)
    others: dict[int, list[int]] = {}

    def reads_slowly() -> None:
        for chunk in stream:
            if chunk.token is None:
                continue
            slow.append(chunk.token)
            assert session.tokens == [*PROMPTS[0], *slow]
            assert session._reader.cache.length <= session.position + 1
            if len(slow) == 4:
                until(lambda: len(others) == 3)

    run(
        [
            reads_slowly,
            *(
                lambda i=i: others.update({i: model.generate(PROMPTS[i], **OPTIONS).tokens})
                for i in (1, 2, 3)
            ),
        ]
    )
    assert slow == alone[0]
    assert [others[i] for i in (1, 2, 3)] == alone[1:]


def test_who_leaves_in_between_begins_again_as_if_nothing_had_been(model: edgedb.Model) -> None:
    alone = [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]
    got: dict[int, list[int]] = {}

    def leaves(i: int) -> None:
        session = model.session()
        for n in (1, 3, 5):
            stream = session.generate(PROMPTS[i], stream=True, **OPTIONS)
            assert [next(stream).token for _ in range(n)] == alone[i][:n]
            stream.close()  # type: ignore[attr-defined]
            assert session.tokens == [*PROMPTS[i], *alone[i][:n]]
        stopped = session.generate(PROMPTS[i], stop=model.detokenize(alone[i][2:4]), **OPTIONS)
        assert stopped.finish_reason in ("stop", "length")
        got[i] = session.generate(PROMPTS[i], **OPTIONS).tokens

    run([lambda i=i: leaves(i) for i in range(4)])
    assert [got[i] for i in range(4)] == alone


def test_a_choice_that_fails_is_for_its_owner(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [model.generate(prompt, **OPTIONS).text for prompt in PROMPTS]
    read = Network.read
    broken = model.session()

    def damaged(network: Network, readings: list[Any], state: Any) -> Any:
        found = read(network, readings, state)
        for reading, logits in zip(readings, found, strict=True):
            if reading.cache is broken._reader.cache and reading.cache.length > 6:
                logits[:] = np.nan
        return found

    monkeypatch.setattr(Network, "read", damaged)
    got: dict[int, str] = {}
    errors: list[edgedb.EdgeDBError] = []

    def fails() -> None:
        try:
            broken.generate(PROMPTS[0], **OPTIONS)
        except edgedb.EdgeDBError as error:
            errors.append(error)

    work = [lambda i=i: got.update({i: model.generate(PROMPTS[i], **OPTIONS).text}) for i in (1, 2)]
    run([fails, *work])
    assert [got[i] for i in (1, 2)] == alone[1:3]
    assert len(errors) == 1 and "not finite" in str(errors[0])


class Taken:
    """A sink, what it got of whom, and the thread that gave it."""

    def __init__(self) -> None:
        self.tokens: list[int | None] = []
        self.flushed = 0
        self.threads: set[int] = set()

    def put(self, chunk: Chunk) -> None:
        self.tokens.append(chunk.token)
        self.threads.add(threading.get_ident())

    def flush(self) -> None:
        self.flushed += 1


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_chunks_go_to_a_sink_in_their_order(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    alone = [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]
    sinks = [Taken() for _ in PROMPTS]

    def answer(i: int) -> None:
        sink = sinks[i]
        request = replace(Request.of(stop=stop, **OPTIONS), sink=Sink(sink.put, sink.flush))
        for chunk in model.session().start(PROMPTS[i], request):
            sink.tokens.append(chunk.token)

    held(model, monkeypatch, [lambda i=i: answer(i) for i in range(len(PROMPTS))])
    assert [sink.tokens for sink in sinks] == [[*tokens, None] for tokens in alone]
    assert any(sink.threads for sink in sinks) == (not stop)


def test_a_cancelled_answer_ends_though_nobody_of_it_is_awake(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks = [Taken() for _ in PROMPTS]
    reasons: dict[int, Any] = {}

    def answer(i: int) -> None:
        sink = sinks[i]
        request = Request.of(temperature=0, max_tokens=200)
        if i:
            request = replace(request, cancelled=lambda: len(sink.tokens) >= 7)
        request = replace(request, sink=Sink(sink.put, sink.flush))
        for chunk in model.session().start(PROMPTS[i], request):
            sink.tokens.append(chunk.token)
            reasons[i] = chunk.finish_reason

    held(model, monkeypatch, [lambda i=i: answer(i) for i in range(len(PROMPTS))])
    assert [reasons[i] for i in range(4)] == ["length", "cancelled", "cancelled", "cancelled"]
    assert all(7 <= len(sink.tokens) <= 9 for sink in sinks[1:])


def test_a_sink_that_fails_ends_its_own_answer(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]
    got: dict[int, list[int | None]] = {i: [] for i in range(4)}
    failed: list[Exception] = []

    def put(i: int, chunk: Chunk) -> None:
        if i == 0:
            raise RuntimeError("full")
        got[i].append(chunk.token)

    def answer(i: int) -> None:
        sink = Sink(lambda chunk: put(i, chunk), lambda: None)
        request = replace(Request.of(**OPTIONS), sink=sink)
        try:
            for chunk in model.session().start(PROMPTS[i], request):
                got[i].append(chunk.token)
        except RuntimeError as error:
            failed.append(error)

    held(model, monkeypatch, [lambda i=i: answer(i) for i in range(len(PROMPTS))])
    assert len(failed) == 1 and str(failed[0]) == "full"
    assert [got[i] for i in (1, 2, 3)] == [[*tokens, None] for tokens in alone[1:]]
