"""Pages: where keys and values of ``PAGE`` positions lie, for all layers together.

Sequences share pages. A page is written by the cache that made it, and there only behind the rows
that others may read; whoever else wants to write takes a copy. So a fork and a common beginning
cost nothing, and no row that somebody reads ever changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .buffer import Buffer
from .narrow_cache import row_bytes

PAGE = 256  # positions; also the keys whose softmax is taken apart, so part of the numerics


@dataclass(frozen=True)
class Part:
    """What one layer has of a page: keys and then values, ``[2, n_kv_heads, PAGE, row]``."""

    n_kv_heads: int
    row: int  # elements
    head_dim: int
    offset: int  # bytes, from the page's first


class PageLayout:
    """Where the layers lie in a page of a model, by the type of its cache."""

    def __init__(self, layers: Sequence[tuple[int, int]], dtype: str) -> None:
        """layers: ``(n_kv_heads, head_dim)`` of each."""
        self.dtype = np.dtype(dtype)
        self.parts: list[Part] = []
        self.page_bytes = 0
        for heads, head_dim in layers:
            row = row_bytes(head_dim) if dtype == "int8" else head_dim
            self.parts.append(Part(heads, row, head_dim, self.page_bytes))
            self.page_bytes += 2 * heads * PAGE * row * self.dtype.itemsize

    def view(self, page: Page, layer: int) -> np.ndarray:
        """Keys and values of a layer, ``[2, n_kv_heads, PAGE, row]``."""
        part = self.parts[layer]
        size = 2 * part.n_kv_heads * PAGE * part.row * self.dtype.itemsize
        whole = page.buffer.array[part.offset : part.offset + size].view(self.dtype)
        return whole.reshape(2, part.n_kv_heads, PAGE, part.row)


class Page:
    """Memory for ``PAGE`` positions of a sequence, committed as rows are written."""

    __slots__ = ("__weakref__", "buffer", "owner", "shared")

    def __init__(self, buffer: Buffer, owner: object) -> None:
        self.buffer = buffer  # uint8 [page_bytes]
        self.owner = owner  # who may write
        self.shared = 0  # rows from the first on that others may read: they stay as they are


class PageTable:
    """The pages of one sequence in order; a backend's own table may follow it."""

    def __init__(self, layout: PageLayout, capacity: int) -> None:
        """capacity: positions."""
        self.layout = layout
        self.pages: list[Page] = []

    def put(self, index: int, page: Page) -> None:
        """``page`` takes the place ``index``, at most one behind the last."""
        self.pages[index : index + 1] = [page]

    def layer(self, index: int) -> CacheLayer:
        """One layer's keys and values."""
        return CacheLayer(self, index)


class CacheLayer:
    """Keys and values of one layer of a sequence, for backends that work on whole arrays."""

    def __init__(self, table: PageTable, layer: int) -> None:
        part = table.layout.parts[layer]
        self.dtype, self.head_dim = table.layout.dtype, part.head_dim
        self._views = [table.layout.view(page, layer) for page in table.pages]

    def store(self, k: np.ndarray, v: np.ndarray, position: int) -> None:
        """Rows ``[n_kv_heads, n, row]`` at ``position`` and on."""
        for which, rows in enumerate((k, v)):
            for start, n, view in _pieces(self._views, position, rows.shape[1]):
                at = (position + start) % PAGE
                view[which, :, at : at + n] = rows[:, start : start + n]

    def rows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values, ``[n_kv_heads, length or more, row]`` and contiguous."""
        views = self._views[: -(-length // PAGE)]
        k, v = (
            views[0][which] if len(views) == 1 else np.concatenate([x[which] for x in views], 1)
            for which in range(2)
        )
        return k, v


def _pieces(views: Sequence[Any], position: int, n: int) -> list[tuple[int, int, Any]]:
    """``n`` rows from ``position`` on, cut where a page ends: first row, rows, and the page's."""
    found, start = [], 0
    while start < n:
        page, at = divmod(position + start, PAGE)
        count = min(n - start, PAGE - at)
        found.append((start, count, views[page]))
        start += count
    return found
