"""What is true of all routes: who may ask, what is refused, how it begins and ends."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
from http_clients import CHAT, HI, LONG, count, plain, streaming, until

from edgedb.serve.served import Served


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/v2/models", {}, 404, "not_found"),
        ("GET", CHAT, {}, 405, "method_not_allowed"),
        ("POST", CHAT, {"content": "{}", "headers": {"content-type": "text/plain"}}, 415, None),
        ("POST", CHAT, {"content": "{"}, 400, "invalid_json"),
        ("POST", CHAT, {"content": "[]"}, 400, "invalid_value"),
        ("POST", CHAT, {"content": b"\xff"}, 400, "invalid_json"),
        ("POST", CHAT, {"content": "[" * 5000}, 400, "invalid_json"),
        ("POST", CHAT, {"content": b" " * ((4 << 20) + 1)}, 413, "body_too_large"),
        ("POST", CHAT, {"content": iter([b" " * (3 << 20)] * 2)}, 413, "body_too_large"),
    ],
)
def test_errors_are_json(
    http: Any, method: str, path: str, options: Any, status: int, code: str | None
) -> None:
    options.setdefault("headers", {"content-type": "application/json"})
    answer = http.request(method, path, **options)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"] and (code is None or error["code"] == code)
    if status == 405:
        assert answer.headers["allow"] == "POST"


def test_keys(serve: Any) -> None:
    server = serve(keys=["one", "two"])
    address = server.address
    assert plain.get(address + "/health").status_code == 200
    assert plain.get(address + "/").status_code == 200
    for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "Basic one"}):
        answer = plain.get(address + "/v1/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    for headers in ({"authorization": "Bearer two"}, {"x-api-key": "one"}):
        assert plain.get(address + "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:5", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_hosts_on_loopback(http: Any, host: str, status: int) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == status


def test_pages_of_others(http: Any, serve: Any) -> None:
    asked = {"origin": "http://a.example", "access-control-request-method": "POST"}
    refused = http.options(CHAT, headers=asked)
    assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers
    server = serve(origins=["http://a.example"])
    allowed = plain.options(server.address + CHAT, headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "http://a.example"
    other = plain.options(server.address + CHAT, headers={**asked, "origin": "http://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_the_page_comes_with_its_policy(http: Any) -> None:
    answer = http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_metrics_and_health(http: Any, server: Any) -> None:
    http.post(CHAT, json={"messages": HI, "max_tokens": 3})
    text = http.get("/metrics").text
    assert 'edgedb_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert count(server, "edgedb_completion_tokens_total") >= 3
    assert http.get("/health").json()["status"] == "ok"


def test_a_document_that_nobody_takes_is_given_up(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgedb.serve import server as module

    monkeypatch.setattr(module, "_KEEP_ALIVE_SECONDS", 0.2)
    server = serve()
    server.server._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections = server.server.server_state.connections
        until(lambda: connections)
        until(lambda: not connections)


def test_who_finds_no_place_is_told_when_to_come_back(serve: Any, slowly: None) -> None:
    server = serve(parallel=1, max_queue=1)
    with streaming(server.address), streaming(server.address):
        answer = plain.post(server.address + CHAT, json={"messages": HI})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert plain.get(server.address + "/health").json()["waiting"] == 1
    until(lambda: server.server.service.desk.open == 0)
    body = {"messages": HI, "max_tokens": 1}
    assert plain.post(server.address + CHAT, json=body).status_code == 200


def test_who_does_not_read_holds_up_nobody(serve: Any, served: Served) -> None:
    server = serve(parallel=1, seconds=1)
    server.server._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = {"messages": HI, "max_tokens": 200, "logprobs": True, "top_logprobs": 20}
    data = json.dumps({**body, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(head + data)
        until(lambda: server.server.service.desk.running)
        answer = plain.post(
            server.address + CHAT, json={"messages": HI, "max_tokens": 4}, timeout=30
        )
        assert answer.status_code == 200
        until(lambda: server.server.service.desk.open == 0)  # and is given up in the end


def test_health_while_it_loads(serve: Any, served: Served) -> None:
    go = threading.Event()

    def load() -> Served:
        go.wait(20)
        return served

    server = serve(load, wait=False)
    for path in ("/health", "/v1/models"):
        answer = until(lambda path=path: plain.get(server.address + path))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
    go.set()
    until(lambda: plain.get(server.address + "/health").status_code == 200)


def test_a_model_that_cannot_be_loaded_ends_the_server(serve: Any) -> None:
    def load() -> Served:
        raise ValueError("damaged")

    server = serve(load, wait=False)
    assert server.server.ready.wait(10)
    server.join()
    assert str(server.server.error) == "damaged"


def test_draining_finishes_what_was_begun(serve: Any, slowly: None) -> None:
    server = serve()
    with streaming(server.address, {**LONG, "max_tokens": 300}) as lines:
        server.server.shut()
        until(lambda: plain.get(server.address + "/health").status_code == 503)
        answer = plain.post(server.address + CHAT, json={"messages": HI})
        assert answer.status_code == 503
        assert list(lines)[-2] == "data: [DONE]"
    server.join()


def test_a_second_signal_ends_what_was_begun(serve: Any, slowly: None) -> None:
    server = serve(parallel=1)
    with streaming(server.address) as lines, streaming(server.address) as waiting:
        server.server.shut()
        server.server.shut()
        for one in (lines, waiting):
            *_, last, _ = list(one)
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    server.join()


def test_an_error_in_the_middle_of_a_stream_is_an_event(
    http: Any, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgedb.choose.sampling import Sampler

    sample, calls = Sampler.sample, iter(range(100))

    def fail(self: Any, *arguments: Any) -> int:
        if next(calls) > 2:
            raise ZeroDivisionError
        return sample(self, *arguments)

    monkeypatch.setattr(Sampler, "sample", fail)
    text = http.post(CHAT, json={**LONG, "max_tokens": 9}).text
    last = [event for event in text.split("\n\n") if event][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    monkeypatch.undo()
    assert http.post(CHAT, json={"messages": HI, "max_tokens": 1}).status_code == 200


def test_routes_without_their_version(http: Any) -> None:
    assert http.get("/models").json() == http.get("/v1/models").json()
    answer = http.post("/chat/completions", json={"messages": HI, "max_tokens": 1})
    assert answer.status_code == 200
    assert http.get("/models/tiny").status_code == 200


def test_small_writes_do_not_wait(server: Any) -> None:
    """asyncio sets TCP_NODELAY by the socket's protocol: without it each event takes 40 ms."""
    assert server.server._sock.proto == socket.IPPROTO_TCP
