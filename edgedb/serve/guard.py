"""Who may ask: keys, names of hosts, and the headers that keep a browser in its place."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from ..display import quoted
from .errors import Refused

# What is told to everybody: whether the server is there, and the page, which holds no secrets.
_OPEN = frozenset(("/health", "/v1/health"))
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address without port, is this machine alone."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests in. ``keys`` empty: everybody may ask."""

    def __init__(
        self, keys: Iterable[str], *, only_local: bool, is_page: Callable[[str], bool]
    ) -> None:
        """``only_local``: the server listens on loopback, so that a page of another name that a
        resolver leads here (DNS rebinding) is turned away. ``is_page``: paths that need no key."""
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._only_local, self._is_page = only_local, is_page

    def check(self, scope: Any) -> None:
        """Raises ``Refused`` for a request that may not come in."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._only_local:
            host = headers.get(b"host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name):
                raise Refused(
                    403,
                    f"Host {quoted(host)} is not this machine; serve on another address to be "
                    "reached by other names",
                    code="host_not_allowed",
                )
        if not self._keys or scope["path"] in _OPEN or self._is_page(scope["path"]):
            return
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        if not self._knows(given):
            raise Refused(
                401,
                "no API key, or not one of this server's: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _knows(self, key: str) -> bool:
        """Takes the same time whichever key it is, and whether it is one."""
        digest, found = hashlib.sha256(key.encode()).digest(), False
        for one in self._keys:
            found |= hmac.compare_digest(digest, one)
        return found
