"""Loads for a server: streams that ask again as soon as they have an answer, arrivals at random,
and beside them one long prompt after the other."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .client import Server
from .figures import Answer, Load, Span

_HEALTH_SECONDS = 0.25  # between looks
_LOOK_SECONDS = 0.002  # between looks at what runs
_READING_SECONDS = 0.1  # that a long prompt is read before its client leaves
_INTRUDER = 2**30  # number of its first request
_INTRUDES_AFTER = 0.25  # of the window
_WORDS = (
    "the of and to in is that for it as was with on by this from are at be have which their one "
    "more river house light stone water green morning paper letter garden winter bread wheel"
)


@dataclass(frozen=True)
class Questions:
    """Requests by their number: the same number asks the same, of every server."""

    model: str
    prompt: int = 32  # tokens, or words of a chat
    tokens: int = 64  # of an answer at most
    shared: int = 0  # tokens or words of a system prompt before it
    systems: int = 1  # different ones
    vocabulary: int = 30000  # ids are drawn below it, above the first 300
    chat: bool = False
    temperature: float = 0.0

    def request(self, number: int) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "seed": number % 2**31,
        }
        system = 2**31 + number % self.systems
        if self.chat:
            messages = [{"role": "user", "content": self._words(number, self.prompt) + "?"}]
            if self.shared:
                content = self._words(system, self.shared)
                messages.insert(0, {"role": "system", "content": content})
            return "/v1/chat/completions", {**body, "messages": messages}
        ids = self._ids(system, self.shared) + self._ids(number, self.prompt)
        return "/v1/completions", {**body, "prompt": ids}

    def _ids(self, number: int, n: int) -> list[int]:
        draw = np.random.default_rng(number)
        return [int(i) for i in draw.integers(300, self.vocabulary, n)]

    def _words(self, number: int, n: int) -> str:
        return " ".join(np.random.default_rng(number).choice(_WORDS.split(), n))


@dataclass
class _Beside:
    """What was seen beside the answers of a load; see ``Load``."""

    intruder: list[Span] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    client_seconds: float = 0.0
    server_seconds: float | None = None


class Bench:
    """A server, and what it is asked."""

    def __init__(self, server: Server, questions: Questions) -> None:
        self._server, self._questions = server, questions

    def ask(self, number: int, stream: int = 0, stop: Callable[[], bool] = lambda: False) -> Answer:
        """The answer to request ``number``."""
        path, body = self._questions.request(number)
        return self._server.ask(path, body, Answer(number, stream), stop)

    def closed(self, streams: int, seconds: float, first: int, intruder: int) -> Load:
        """``streams`` that ask again and again, requests from ``first`` on."""
        end = time.perf_counter() + seconds
        answers: list[Answer] = []

        def ask(stream: int) -> None:
            number = first + stream
            while time.perf_counter() < end:
                answers.append(self.ask(number, stream, lambda: time.perf_counter() > end))
                number += streams

        with self._beside(end, intruder) as beside:
            _together([lambda i=i: ask(i) for i in range(streams)])  # type: ignore[misc]
        return Load(f"{streams} streams", (end - seconds, end), answers, **vars(beside))

    def poisson(self, rate: float, seconds: float, first: int, intruder: int) -> Load:
        """Requests that come at random, ``rate`` a second; each is a stream of its own."""
        draw = np.random.default_rng(first)
        waits = draw.exponential(1 / rate, max(1, int(2 * rate * seconds)))
        arrivals = [at for at in np.cumsum(waits).tolist() if at < seconds]
        begin = time.perf_counter()
        end = begin + seconds
        answers: list[Answer] = []

        def ask(i: int, at: float) -> None:
            time.sleep(max(0.0, begin + at - time.perf_counter()))
            answers.append(self.ask(first + i, i, lambda: time.perf_counter() > end))

        with self._beside(end, intruder) as beside:
            _together([lambda i=i, at=at: ask(i, at) for i, at in enumerate(arrivals)])  # type: ignore[misc]
        name = f"{rate:g} a second"
        return Load(name, (begin, end), answers, is_closed=False, **vars(beside))

    def leaving(self, times: int, prompt: int) -> tuple[list[float], list[float]]:
        """Seconds from the moment at which a connection is closed until the server's metrics count
        its answer no more: of clients that have a first token, and of those whose prompt of
        ``prompt`` tokens is being read. Raises ``SystemExit`` where there are no such metrics."""
        found: tuple[list[float], list[float]] = [], []
        long = replace(self._questions, prompt=prompt, shared=0)
        for number in range(times):
            for seconds, questions in zip(found, (self._questions, long), strict=True):
                path, body = questions.request(2**28 + number)
                with self._server.asking(path, body) as connection:
                    if questions is long:
                        while not self._running():
                            time.sleep(_LOOK_SECONDS)
                        time.sleep(_READING_SECONDS)
                    else:
                        _read_events(connection.getresponse(), 3)  # the first may be a role
                closed = time.perf_counter()
                while self._running():
                    time.sleep(_LOOK_SECONDS)
                seconds.append(time.perf_counter() - closed)
        return found

    def _running(self) -> int:
        running = self._server.running()
        if running is None:
            raise SystemExit("its /metrics do not say how many answers it makes")
        return running

    def compared(self, load: Load, most: int) -> Load:
        """``load`` with how many of its first ``most`` whole answers are those given alone."""
        whole = [a for a in load.answers if a.tokens is not None and not a.error]
        chosen = sorted(whole, key=lambda a: a.number)[:most]
        same = sum(self.ask(a.number).text == a.text for a in chosen)
        return replace(load, same=(same, len(chosen)))

    @contextmanager
    def _beside(self, end: float, intruder: int) -> Iterator[_Beside]:
        """Until ``end``: looks at the server's health, and prompts of ``intruder`` tokens."""
        beside = _Beside()
        refusals: list[str] = []  # of the long prompt
        left = threading.Event()

        def look() -> None:
            while not left.wait(_HEALTH_SECONDS):
                seconds = self._server.health_seconds()
                if seconds is None:
                    return
                beside.health.append(seconds)

        def intrude() -> None:
            asked = replace(self._questions, prompt=intruder, shared=0, tokens=1)
            number = _INTRUDER
            if left.wait(_INTRUDES_AFTER * (end - time.perf_counter())):
                return
            while time.perf_counter() < end:
                began = time.perf_counter()
                path, body = asked.request(number)
                answer = self._server.ask(path, body, Answer(number, -1), left.is_set)
                if answer.error:
                    refusals.append(answer.error)
                    return
                beside.intruder.append((began, time.perf_counter()))
                number += 1

        threads = [threading.Thread(target=look)]
        threads += [threading.Thread(target=intrude)] if intruder else []
        for thread in threads:
            thread.start()
        client, server = time.process_time(), self._server.processor_seconds()
        try:
            yield beside
        finally:
            beside.client_seconds = time.process_time() - client
            if server is not None:
                beside.server_seconds = (self._server.processor_seconds() or 0) - server
            left.set()
            for thread in threads:
                thread.join()
        if refusals:
            raise SystemExit(f"the prompt of {intruder} tokens: {refusals[0]}")


def _read_events(response: http.client.HTTPResponse, n: int) -> None:
    while n and (line := response.readline()):
        n -= line.startswith(b"data:")


def _together(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
