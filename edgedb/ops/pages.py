"""Pages: where keys and values of ``PAGE`` positions lie, for all layers together.

Sequences share pages. A page is written by the cache that made it, and there only behind the rows
that others may read; whoever else wants to write takes a copy. So a fork and a common beginning
cost nothing, and no row that somebody reads ever changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buffer import Buffer
from .narrow_cache import NarrowBlocks, block_bytes, row_bytes

PAGE = 256  # positions; also the keys whose softmax is taken apart, so part of the numerics


@dataclass(frozen=True)
class Part:
    """What one layer has of a page: keys and then values, ``[2, n_kv_heads, head_bytes]``."""

    n_kv_heads: int
    row: int  # elements
    head_dim: int
    head_bytes: int
    offset: int  # bytes, from the page's first


class PageLayout:
    """Where the layers lie in a page of a model, by the type of its cache."""

    def __init__(self, layers: Sequence[tuple[int, int]], dtype: str) -> None:
        """layers: ``(n_kv_heads, head_dim)`` of each."""
        self.dtype = np.dtype(dtype)
        self.parts: list[Part] = []
        self.page_bytes = 0
        for heads, head_dim in layers:
            row, size = head_dim, PAGE * head_dim * self.dtype.itemsize
            if dtype == "int8":
                row, size = row_bytes(head_dim), block_bytes(head_dim, PAGE)
            self.parts.append(Part(heads, row, head_dim, size, self.page_bytes))
            self.page_bytes += 2 * heads * size

    def _data(self, page: Page, layer: int) -> np.ndarray:
        """Keys and values of a layer, ``[2, n_kv_heads, head_bytes]``."""
        part = self.parts[layer]
        size = 2 * part.n_kv_heads * part.head_bytes
        whole = page.buffer.array[part.offset : part.offset + size]
        return whole.reshape(2, part.n_kv_heads, part.head_bytes)

    def _floats(self, page: Page, layer: int) -> np.ndarray:
        return self._data(page, layer).view(self.dtype).reshape(2, -1, PAGE, self.parts[layer].row)

    def _blocks(self, page: Page, layer: int) -> NarrowBlocks:
        return NarrowBlocks(self._data(page, layer), self.parts[layer].head_dim)

    def rows(self, page: Page, layer: int, which: int, n: int = PAGE) -> np.ndarray:
        """Keys (0) or values (1) of the first ``n`` positions, ``[n_kv_heads, n, row]``; a view of
        floats, a copy of int8."""
        if self.dtype == np.int8:
            return self._blocks(page, layer).rows(which, n)
        return self._floats(page, layer)[which, :, :n]

    def put(self, page: Page, layer: int, which: int, rows: np.ndarray, at: int = 0) -> None:
        """``rows [n_kv_heads, n, row]`` become keys (0) or values (1) from position ``at`` on."""
        if self.dtype == np.int8:
            self._blocks(page, layer).put(which, rows, at)
        else:
            self._floats(page, layer)[which, :, at : at + rows.shape[1]] = rows

    def copy(self, source: Page, to: Page, n: int) -> None:
        """The first ``n`` positions of all layers."""
        for layer in range(len(self.parts)):
            if self.dtype == np.int8:
                self._blocks(to, layer).copy_from(self._blocks(source, layer), n)
            else:
                self._floats(to, layer)[:, :, :n] = self._floats(source, layer)[:, :, :n]


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
        self._layout, self._layer, self._pages = table.layout, layer, table.pages
        self.dtype, self.head_dim = table.layout.dtype, table.layout.parts[layer].head_dim

    def store(self, k: np.ndarray, v: np.ndarray, position: int) -> None:
        """Rows ``[n_kv_heads, n, row]`` at ``position`` and on."""
        start, n = 0, k.shape[1]
        while start < n:
            page, at = divmod(position + start, PAGE)
            stop = min(n, start + PAGE - at)
            for which, rows in enumerate((k, v)):
                piece = rows[:, start:stop]
                self._layout.put(self._pages[page], self._layer, which, piece, at)
            start = stop

    def rows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values, ``[n_kv_heads, length or more, row]`` and contiguous."""
        pages = self._pages[: -(-length // PAGE)]
        found = [
            [self._layout.rows(page, self._layer, which) for page in pages] for which in range(2)
        ]
        k, v = (rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1) for rows in found)
        return k, v
