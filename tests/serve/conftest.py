"""A server in a thread, over the tiny model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import edgedb
from edgedb.serve.served import Served

CACHE_TOKENS = 8192


class Running:
    """A server that runs, and where."""

    def __init__(self, server: Any, port: int, thread: threading.Thread) -> None:
        self.server, self.port, self._thread = server, port, thread
        self.address = f"http://127.0.0.1:{port}"

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server does not end"


def start(load: Callable[[], Served], **options: Any) -> Running:
    pytest.importorskip("starlette", reason="needs pip install '.[serve]'")
    pytest.importorskip("uvicorn", reason="needs pip install '.[serve]'")
    from edgedb.serve.server import Server, listen

    sock = listen("127.0.0.1", 0)
    server = Server(load, sock, **options)

    def run() -> None:
        with suppress(ValueError):  # a test's own, of loading
            server.run_here()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Running(server, sock.getsockname()[1], thread)


@pytest.fixture(scope="session")
def served(long_model: Path) -> Served:
    """The tiny model with a context of 2,048, as it is served."""
    model = edgedb.load(long_model, context=2048, threads=1, cache_tokens=CACHE_TOKENS)
    return Served(model, aliases=["tiny"], params=edgedb.SamplingParams(temperature=0.7))


@pytest.fixture
def serve(served: Served) -> Iterator[Callable[..., Running]]:
    """Starts servers that end with the test."""
    found: list[Running] = []

    def run(
        load: Callable[[], Served] = lambda: served, wait: bool = True, **options: Any
    ) -> Running:
        running = start(load, **options)
        found.append(running)
        if wait:
            assert running.server.ready.wait(20)
        return running

    yield run
    for running in found:
        running.server.shut()
        running.server.shut()
        running.join()


@pytest.fixture(scope="session")
def server(served: Served) -> Iterator[Running]:
    """One for all tests that change nothing of it."""
    running = start(lambda: served)
    assert running.server.ready.wait(20)
    yield running
    running.server.shut()
    running.join()


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[Any]:
    """The ``openai`` package's client of it."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[Any]:
    """A plain client of it."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.address, timeout=30) as found:
        yield found


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing a token takes 4 ms, so that answers last."""
    from edgedb.choose.sampling import Sampler

    sample = Sampler.sample

    def wait(self: Any, *arguments: Any) -> int:
        time.sleep(0.004)
        return sample(self, *arguments)

    monkeypatch.setattr(Sampler, "sample", wait)
