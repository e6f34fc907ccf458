"""Clients that close their connection: what the engine still does for them, in passes. No clock is
asked: how long a pass may take is the reader's bound (``tests/run/test_pace.py``)."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from http_clients import HI, LONG, asking, count, streaming, until

import edgedb
from edgedb.model.network import Network
from edgedb.serve.served import Served
from edgedb.serve.worker import Worker

PROMPT = [{"role": "user", "content": "A prompt that nobody has read. " * 50}]


class Passes:
    """Counts passes; from the cancel on, those that begin after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.after = 0
        self.is_cancelled = threading.Event()
        self.hold: threading.Event | None = None  # what each pass waits for, if anything
        read, cancel = Network.read, Worker.cancel

        def note(network: Network, readings: Any, state: Any) -> Any:
            self.all += 1
            self.after += self.is_cancelled.is_set()
            if self.hold is not None:
                assert self.hold.wait(20)
            return read(network, readings, state)

        def note_cancel(worker: Worker) -> None:
            cancel(worker)
            self.is_cancelled.set()

        monkeypatch.setattr(Network, "read", note)
        monkeypatch.setattr(Worker, "cancel", note_cancel)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [True, False])
def test_while_it_is_answered(
    serve: Any, slowly: None, passes: Passes, stream: bool, n: int
) -> None:
    """A pass that runs comes to its end, and each answer's thread may have been on its way into one
    more."""
    server = serve(parallel=4)
    with asking(server.port, {**LONG, "stream": stream, "n": n}):
        until(lambda: passes.all > 9)
        assert server.server.service.desk.running == n
    assert passes.is_cancelled.wait(20)
    until(lambda: server.server.service.desk.running == 0)
    assert passes.after <= n
    assert count(server, 'edgedb_answers_total{reason="cancelled"}') == n


def test_while_its_prompt_is_read(serve: Any, passes: Passes) -> None:
    server = serve(parallel=1)
    passes.hold = threading.Event()
    with asking(server.port, {"messages": PROMPT, "max_tokens": 100}):
        until(lambda: passes.all == 1)
    assert passes.is_cancelled.wait(20)  # though a pass runs
    passes.hold.set()
    until(lambda: server.server.service.desk.running == 0)
    assert (passes.all, passes.after) == (1, 0)
    assert count(server, "edgedb_completion_tokens_total") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_while_it_waits_for_a_place(serve: Any, slowly: None, passes: Passes, stream: bool) -> None:
    server = serve(parallel=1)
    desk = server.server.service.desk
    with streaming(server.address):
        with asking(server.port, {**LONG, "stream": stream}):
            until(lambda: desk.waiting == 1)
        until(lambda: desk.waiting == 0 and desk.open == 1)
        assert desk.running == 1 and not passes.is_cancelled.is_set()
    until(lambda: desk.running == 0)
    assert count(server, 'edgedb_answers_total{reason="cancelled"}') == 1  # the other never began


def test_while_it_waits_for_memory(
    serve: Any, slowly: None, passes: Passes, served: Served
) -> None:
    """Of the one that waits nothing is read."""
    model = edgedb.load(served.model.file.path, context=1000, threads=1, cache_tokens=1024)
    server = serve(lambda: Served(model))
    desk = server.server.service.desk
    with streaming(server.address, {"messages": HI, "max_tokens": 900, "stream": True}):
        with asking(server.port, {"messages": HI, "max_tokens": 900}):
            until(lambda: model.admission.waiting == 1)
        until(lambda: model.admission.waiting == 0 and desk.open == 1)
        assert count(server, 'edgedb_answers_total{reason="cancelled"}') == 1
        assert count(server, "edgedb_prompt_tokens_total") == count(
            server, "edgedb_cached_tokens_total"
        )
    until(lambda: desk.open == 0)
