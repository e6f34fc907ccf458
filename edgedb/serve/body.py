"""Reading what a client sends: JSON, of bounded size, within a bounded time."""

from __future__ import annotations

import asyncio
from typing import Any

from ..display import quoted
from ..errors import FormatError
from ..strict_json import parse_json
from .errors import Refused

MAX_BODY_BYTES = 4 << 20


async def read_body(scope: Any, receive: Any, seconds: float) -> bytes:
    """All of it. Raises ``Refused`` if it is too much, takes too long or is of a wrong type."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    _check_type(scope["path"], headers)
    length = headers.get(b"content-length", "0")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return await asyncio.wait_for(_receive(receive), seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"the request did not come within {seconds:g} seconds") from None


def _check_type(path: str, headers: dict[bytes, str]) -> None:
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return
    # Ollama's own examples let curl say what it says by itself. From a browser such types would
    # need no leave of ours, so they are for clients that are none.
    plain = kind in ("", "application/x-www-form-urlencoded")
    browser = b"origin" in headers or b"sec-fetch-site" in headers
    if path.startswith("/api/") and plain and not browser:
        return
    raise Refused(415, f"Content-Type {quoted(kind)}: expected application/json")


async def _receive(receive: Any) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large() -> Refused:
    return Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")


def parse_body(data: bytes) -> Any:
    """The JSON in ``data``. Raises ``Refused``."""
    try:
        return parse_json(data.decode("utf-8"), "the body")
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8", code="invalid_json") from None
    except FormatError as error:
        raise Refused(400, str(error), code="invalid_json") from None
