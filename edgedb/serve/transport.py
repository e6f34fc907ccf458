"""How answers travel: one JSON document, or its events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from .errors import Refused, ollama_error, openai_error

Write = Callable[[Any], bytes]
PING_SECONDS = 15.0


def to_json(document: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


def sse(event: Any) -> bytes:
    """A server-sent event; one with a ``type`` of the Responses API bears that as its name."""
    name = event.get("type") if isinstance(event, dict) else None
    prefix = b"event: %s\n" % name.encode() if isinstance(name, str) else b""
    return b"%sdata: %s\n\n" % (prefix, to_json(event))


def line(event: Any) -> bytes:
    """A line of NDJSON."""
    return to_json(event) + b"\n"


class Transport:
    """How one family of routes writes."""

    def __init__(
        self,
        write: Write,
        content_type: bytes,
        error: Callable[[Refused], dict[str, Any]],
        ping: bytes = b"",
    ) -> None:
        self.write, self.content_type, self.error, self.ping = write, content_type, error, ping


OPENAI = Transport(sse, b"text/event-stream; charset=utf-8", openai_error, b": ping\n\n")
OLLAMA = Transport(line, b"application/x-ndjson", ollama_error)


def transport_of(path: str) -> Transport:
    """Of a route."""
    return OLLAMA if path.startswith("/api/") else OPENAI


class Sender:
    """Writes one response to a client who may be slow or gone."""

    def __init__(self, send: Any, transport: Transport, abort: Callable[[], None]) -> None:
        """``abort`` closes the connection, whatever is still to be sent."""
        self._send, self.transport, self.abort = send, transport, abort
        self.status: int | None = None
        self._since: float | None = None  # since when a write has not come through
        self._last = 0.0

    async def document(
        self, status: int, document: Any, headers: dict[str, str] | None = None
    ) -> None:
        """One JSON document; ``bytes`` are written as they are."""
        data = document if isinstance(document, bytes) else to_json(document)
        await self.content(status, b"application/json", data, headers)

    async def content(
        self, status: int, kind: bytes, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """``data`` of the type ``kind``."""
        extra = [(b"content-length", str(len(data)).encode())]
        await self._start(status, kind, extra, headers)
        await self._write({"type": "http.response.body", "body": data})

    async def refuse(self, error: Refused) -> None:
        """An error, as a status or, where a stream has begun, as its last event."""
        if self.status is None:
            await self.document(error.status, self.transport.error(error), error.headers)
        else:
            await self.events([self.transport.error(error)])
            await self.end()

    async def begin(self) -> None:
        """A stream begins."""
        extra = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._start(200, self.transport.content_type, extra, None)

    async def events(self, events: Iterable[Any]) -> None:
        """More of it."""
        data = b"".join(map(self.transport.write, events))
        if data:
            await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def ping(self) -> None:
        """Show the client that somebody is there."""
        if self.transport.ping:
            data = self.transport.ping
            await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        """No more comes."""
        await self._write({"type": "http.response.body", "body": last})

    def stuck(self) -> float:
        """Seconds for which the client has taken nothing of what is sent."""
        if self._since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._since

    def idle(self) -> float:
        """Seconds since something was sent."""
        return asyncio.get_running_loop().time() - self._last

    async def _start(
        self,
        status: int,
        kind: bytes,
        extra: list[tuple[bytes, bytes]],
        headers: dict[str, str] | None,
    ) -> None:
        self.status = status
        given = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        all_headers = [(b"content-type", kind), *extra, *given]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def _write(self, message: dict[str, Any]) -> None:
        self._since = asyncio.get_running_loop().time()
        await self._send(message)
        self._since, self._last = None, asyncio.get_running_loop().time()
