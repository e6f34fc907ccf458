"""Whose row is whose in a pass, and where each sequence's keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .buffer import Buffer

# Rows that go through a program together. A weight tile is expanded once for all of them; more
# than this gains nothing and delays a cancel.
MAX_ROWS = 128

CacheLayer = tuple[Buffer, Buffer]  # keys, values: ``[n_kv_heads, capacity, row]``


class Cache(Protocol):
    """Keys and values of one sequence: a pair for each layer. ``handle`` is the backend's own,
    from ``Ops.cache_handle``."""

    @property
    def layers(self) -> Sequence[CacheLayer]: ...

    @property
    def handle(self) -> Any: ...


@dataclass(frozen=True)
class Span:
    """``n`` rows of a pass: one sequence's positions ``position`` and on."""

    cache: Cache
    position: int
    n: int
