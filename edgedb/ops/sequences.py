"""Whose row is whose in a pass, and where each sequence's keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .pages import PageTable

# Rows that go through a program together. A weight tile is expanded once for all of them; more
# than this gains nothing and delays a cancel.
MAX_ROWS = 128


class Cache(Protocol):
    """Keys and values of one sequence. ``table`` is of the backend's own, from ``Ops.page_table``,
    and has pages for what a pass stores."""

    @property
    def table(self) -> PageTable: ...


@dataclass(frozen=True)
class Span:
    """``n`` rows of a pass: one sequence's positions ``position`` and on."""

    cache: Cache
    position: int
    n: int
