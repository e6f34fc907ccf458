"""The client that measures servers, against a server whose answers are known."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench.serve.client import Server
from bench.serve.figures import Answer, Load, line, percentiles, summary
from bench.serve.loads import Bench, Questions


class Fake(BaseHTTPRequestHandler):
    """Says the first id of a prompt, or of a conversation its last word, in pieces."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]] = []  # noqa: RUF012
    busy = threading.Semaphore(1000)
    drifts = False  # answers that depend on who else asks

    def log_message(self, *_: object) -> None:
        pass

    running: list[int] = []  # noqa: RUF012 - what its metrics say, one after the other

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.send_response(200)
            text = f"# HELP\nedgedb_running {self.running.pop(0)}\n" if self.running else "none\n"
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
            return
        self._whole(200, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body.get("seed") == 13:
            return self._whole(429, {"error": {"message": "too many"}})
        chat = self.path == "/v1/chat/completions"
        said = body["messages"][-1]["content"][-5:] if chat else str(body["prompt"][-1])
        if self.drifts:
            said = str(len(self.asked))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._write(": a comment\n\n")
        for piece in ("", *said):
            delta = {"delta": {"content": piece}} if chat else {"text": piece}
            self._write("data: " + json.dumps({"choices": [delta]}) + "\n\n")
        usage = {"completion_tokens": len(said)}
        self._write("data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n")
        self._write("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _write(self, text: str) -> None:
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def _whole(self, status: int, document: object) -> None:
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Fake, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)  # who asked may go away
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_streamed_answer(url: str) -> None:
    server = Server(url, "key")
    assert server.model() == "fake"
    bench = Bench(server, Questions("fake", prompt=3, tokens=8))
    before = time.perf_counter()
    answer = bench.ask(7)
    body = Fake.asked[0]
    assert answer.text == str(body["prompt"][-1]) and answer.tokens == len(answer.text)
    assert len(answer.stamps) == len(answer.text)  # empty pieces are none
    assert before < answer.sent < answer.stamps[0] <= answer.stamps[-1]
    assert body["stream"] is True and body["max_tokens"] == 8 and len(body["prompt"]) == 3
    assert bench.ask(7).text == answer.text != bench.ask(8).text
    assert bench.ask(13).error == "429 too many"


def test_a_conversation_with_a_shared_system_prompt(url: str) -> None:
    bench = Bench(Server(url), Questions("fake", 4, shared=20, systems=2, chat=True))
    for number in (0, 1, 2):
        assert bench.ask(number).text.endswith("?")
    systems = [body["messages"][0]["content"] for body in Fake.asked]
    assert systems[0] == systems[2] != systems[1] and len(systems[0].split()) == 20


@pytest.mark.parametrize("chat", [False, True])
def test_clients_that_leave(url: str, monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    """One that has a token, and one whose prompt is read: asked again until nothing runs."""
    monkeypatch.setattr(Fake, "running", [1, 0, 0, 1, 1, 0])
    bench = Bench(Server(url), Questions("fake", prompt=3, chat=chat))
    writing, reading = bench.leaving(1, 50)
    assert not Fake.running and len(writing) == len(reading) == 1
    assert len(Fake.asked) == 2 and min(*writing, *reading) > 0
    with pytest.raises(SystemExit, match="metrics"):
        bench.leaving(1, 50)


def test_a_long_prompt_that_is_refused_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.serve.loads._INTRUDER", 13)
    bench = Bench(Server(url), Questions("fake", prompt=3))
    with pytest.raises(SystemExit, match="prompt of 50 tokens: 429 too many"):
        bench.closed(1, 0.3, 100, 50)


def test_no_server_is_an_error_of_the_answer() -> None:
    answer = Bench(Server("http://127.0.0.1:9"), Questions("fake")).ask(1)
    assert "Connection refused" in answer.error and answer.tokens is None


@pytest.mark.parametrize("drifts", [False, True])
def test_streams_in_a_closed_loop(url: str, drifts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "drifts", drifts)
    has_proc = sys.platform == "linux"  # where the server is a thread of this process
    pid = os.getpid() if has_proc else None
    bench = Bench(Server(url, pid=pid), Questions("fake", prompt=2))
    load = bench.compared(bench.closed(3, 0.4, 100, intruder=50), 5)
    assert load.client_seconds > 0 and (load.server_seconds is None) != has_proc
    assert {answer.stream for answer in load.answers} == {0, 1, 2}
    numbers = [answer.number for answer in load.answers]
    assert min(numbers) == 100 and len(set(numbers)) == len(numbers) > 3
    assert load.same == ((0, 5) if drifts else (5, 5))
    assert load.intruder and load.health
    assert any(len(body["prompt"]) == 50 for body in Fake.asked)
    found = summary(load)
    assert found["failed"] == 0 and found["tokens a second"] > 0
    json.dumps(found)
    text = line("fake", found)
    assert "3 streams" in text and "beside the intruder" in text


def test_arrivals_at_random(url: str) -> None:
    load = Bench(Server(url), Questions("fake", prompt=2)).poisson(50, 0.4, 0, intruder=0)
    assert 5 < len(load.answers) < 40
    assert {a.stream for a in load.answers} == set(range(len(load.answers)))
    assert all(a.number == a.stream for a in load.answers)
    assert "stream" not in line("fake", summary(load))


def test_figures() -> None:
    """Two streams of which one is half as fast, and an intruder that makes it wait."""
    quick = Answer(0, 0, sent=0.0, stamps=[0.5 + 0.1 * i for i in range(10)], tokens=10)
    slow = Answer(1, 1, sent=0.0, stamps=[0.5, 0.7, 0.9, 1.1, 1.9], tokens=8)
    late = Answer(2, 1, sent=1.9, stamps=[5.0], error="500 gone")
    load = Load("x", (0.0, 2.0), [quick, slow, late], intruder=[(1.25, 1.8)], client_seconds=0.5)
    found = summary(load)
    assert found["tokens a second"] == pytest.approx(15 * 18 / 15 / 2)
    assert found["of a stream"] == pytest.approx(13 * 18 / 15 / 2.3)
    assert found["client cores"] == 0.25 and found["server cores"] is None
    assert found["slowest over fastest"] == 2
    assert found["first token"] == pytest.approx((500, 2840, 3048))
    assert found["answers"] == 2 and found["errors"] == ["500 gone"]
    assert found["without it"] == pytest.approx((100, 200, 200))
    assert found["beside the intruder"] == pytest.approx((100, 730, 786))
    assert found["worst stream's p99 ratio"] == pytest.approx(4)
    assert percentiles([]) != percentiles([])  # not numbers
