"""Plain HTTP clients of a server under test."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi there"}]
LONG = {"messages": HI, "max_tokens": 1500, "stream": True}
plain = httpx.Client(timeout=30)


def until(found: Callable[[], Any], seconds: float = 10) -> Any:
    """What ``found`` returns once it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.005)
    raise AssertionError("it does not come")


@contextmanager
def streaming(address: str, body: Any = LONG) -> Iterator[Any]:
    """The lines of a stream of which the first event has come."""
    with plain.stream("POST", address + CHAT, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


@contextmanager
def asking(port: int, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request whose answer nobody reads; the connection."""
    data = json.dumps(body).encode()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head % CHAT.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        yield connection


def count(server: Any, name: str) -> float:
    """The value of ``name`` in ``/metrics``."""
    for line in plain.get(server.address + "/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(name)
