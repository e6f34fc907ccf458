"""Keys and values of the positions read so far, in pages that sequences share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..ops import Ops
from ..ops.pages import PAGE, Page, PageLayout
from ..ops.values import Value

KV_DTYPES = ("float16", "float32", "int8")


class Filled(NamedTuple):
    """The filled part of a layer's keys or values."""

    name: str
    layer: int
    which: int  # 0: keys, 1: values
    cache: KVCache

    @property
    def head_dim(self) -> int:
        return self.cache.layout.parts[self.layer].head_dim

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n_kv_heads, length, row)``."""
        part = self.cache.layout.parts[self.layer]
        return part.n_kv_heads, self.cache.length, part.row

    @property
    def rows(self) -> np.ndarray:
        """``[n_kv_heads, length, row]``, end to end: a copy."""
        layout = self.cache.layout
        found = [np.empty((self.shape[0], 0, self.shape[2]), layout.dtype)]
        for start, page in self.cache.filled_pages():
            n = min(PAGE, self.cache.length - start)
            found.append(layout.rows(page, self.layer, self.which, n))
        return np.concatenate(found, axis=1)

    def put(self, rows: np.ndarray) -> None:
        """The other way."""
        for start, page in self.cache.filled_pages():
            piece = rows[:, start : start + PAGE]
            self.cache.layout.put(page, self.layer, self.which, piece)


class KVCache:
    """Room for ``capacity`` positions; ``length`` of them are filled.

    Memory comes in pages of 256 positions and is committed as the context grows into them. Bytes
    when full: ``2 * n_layers * n_kv_heads * capacity * row``. A row is ``2 * head_dim`` in float16,
    ``4 * head_dim`` in float32, and ``68 * ceil(head_dim / 64)`` in int8, whole groups of 64 codes
    with a scale for each.
    """

    def __init__(
        self, attentions: Sequence[Value], ops: Ops, capacity: int, dtype: str = "float16"
    ) -> None:
        """attentions: what reads the cache, layer by layer (``Program.attentions``)."""
        self.capacity = capacity
        self.length = 0
        layers = [(value["n_kv_heads"], value["head_dim"]) for value in attentions]
        self.layout = PageLayout(layers, dtype)
        self.table = ops.page_table(self.layout, capacity)
        self._ops = ops
        self._owner = object()  # of the pages that this cache made

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes when its context is full."""
        return self.capacity * self.layout.page_bytes // PAGE

    def reserve(self, n: int) -> None:
        """Have pages that ``n`` more positions can be written to."""
        length, pages = self.length, self.table.pages
        for index in range(length // PAGE, -(-(length + n) // PAGE)):
            kept = max(0, length - index * PAGE)  # rows of this page that are to stay
            if index < len(pages):
                old = pages[index]
                if old.owner is self._owner and old.shared <= kept:
                    continue
            page = Page(self._ops.buffer((self.layout.page_bytes,), np.uint8), self._owner)
            if kept:
                self.layout.copy(pages[index], page, kept)
            self.table.put(index, page)

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        self.length = min(self.length, length)

    def share(self, length: int) -> list[Page]:
        """Pages with the first ``length`` positions, which from now on stay as they are."""
        pages = self.table.pages[: -(-length // PAGE)]
        for index, page in enumerate(pages):
            page.shared = max(page.shared, min(PAGE, length - index * PAGE))
        return pages

    def adopt(self, pages: Sequence[Page], length: int) -> None:
        """Hold the first ``length`` positions of ``pages``, which somebody shares."""
        self.length = 0
        for index, page in enumerate(pages):
            self.table.put(index, page)
        self.length = length

    def copy_from(self, other: KVCache) -> None:
        """Take over the filled positions of ``other``, a cache of the same model and type."""
        self.adopt(other.share(other.length), other.length)

    def filled_pages(self) -> Iterator[tuple[int, Page]]:
        """The first position of each page that is filled, and the page."""
        return zip(range(0, self.length, PAGE), self.table.pages, strict=False)

    def filled(self) -> Iterator[Filled]:
        """Every array in order."""
        for layer in range(len(self.layout.parts)):
            for which, kind in enumerate(("keys", "values")):
                yield Filled(f"layers.{layer}.{kind}", layer, which, self)
