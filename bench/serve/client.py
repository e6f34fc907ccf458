"""A client of OpenAI's API that notes when every piece of a streamed answer comes."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .figures import Answer

_RUNNING = re.compile(r"^(?:edgedb_running|llamacpp:requests_processing) (\d+)", re.M)


class Server:
    """A server at ``http://host:port``; ``key`` goes with every request. ``pid`` is its process."""

    def __init__(
        self, url: str, key: str = "", timeout: float = 600.0, pid: int | None = None
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._timeout, self._pid = timeout, pid
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def model(self) -> str:
        """The name of the first model that it serves."""
        connection = self._connect()
        connection.request("GET", "/v1/models", headers=self._headers)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return str(found["data"][0]["id"])

    def wait(self, seconds: float) -> None:
        """Until it has loaded its model. Raises ``SystemExit`` if that takes longer."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            with suppress(OSError, http.client.HTTPException):
                if self.health_seconds() is not None:
                    return
            time.sleep(0.2)
        raise SystemExit(f"{self._host}:{self._port}: no server is ready there")

    def health_seconds(self) -> float | None:
        """How long a look at its health takes; None where it has none."""
        started = time.perf_counter()
        connection = self._connect()
        try:
            connection.request("GET", "/health", headers=self._headers)
            response = connection.getresponse()
            response.read()
            return time.perf_counter() - started if response.status == 200 else None
        finally:
            connection.close()

    def processor_seconds(self) -> float | None:
        """Processor time that its process has taken, on Linux; None where that is not known."""
        if self._pid is None:
            return None
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def running(self) -> int | None:
        """Answers that it makes now, as its metrics say; None where they do not."""
        connection = self._connect()
        try:
            connection.request("GET", "/metrics", headers=self._headers)
            found = _RUNNING.search(connection.getresponse().read().decode())
            return int(found[1]) if found else None
        finally:
            connection.close()

    @contextmanager
    def asking(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
        """A streamed request whose connection is closed behind this, whatever has come."""
        connection = self._connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), self._headers)
            yield connection
        finally:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def ask(
        self,
        path: str,
        body: dict[str, Any],
        answer: Answer,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Fill ``answer`` until it ends, or goes away from it when ``stop`` says so."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection = self._connect()
        answer.sent = time.perf_counter()
        try:
            connection.request("POST", path, json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                answer.error = f"{response.status} {_reason(response.read())}"
                return answer
            for event in _events(response):
                if stop():
                    return answer
                _take(event, answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            with suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        return answer


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while raw := response.readline():
        if raw.startswith(b"data:"):  # others are comments and empty lines
            data = raw[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)


def _take(event: dict[str, Any], answer: Answer) -> None:
    now = time.perf_counter()
    if "error" in event:
        answer.error = str(event["error"])
    for choice in event.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            answer.stamps.append(now)
            answer.text += text
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]


def _reason(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
