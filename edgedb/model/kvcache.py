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
    """The filled part of one array of a cache: a piece of each page, as views."""

    name: str
    pieces: list[np.ndarray]  # [n_kv_heads, up to PAGE, row]
    head_dim: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n_kv_heads, length, row)``."""
        heads, _, row = self.pieces[0].shape
        return heads, sum(piece.shape[1] for piece in self.pieces), row

    @property
    def rows(self) -> np.ndarray:
        """``[n_kv_heads, length, row]``, end to end."""
        return np.concatenate(self.pieces, axis=1)

    def put(self, rows: np.ndarray) -> None:
        """The other way."""
        start = 0
        for piece in self.pieces:
            piece[...] = rows[:, start : start + piece.shape[1]]
            start += piece.shape[1]


class KVCache:
    """Room for ``capacity`` positions; ``length`` of them are filled.

    Memory comes in pages of 256 positions and is committed as the context grows into them. Bytes
    when full: ``2 * n_layers * n_kv_heads * capacity * row``. A row is ``2 * head_dim`` in float16,
    ``4 * head_dim`` in float32, and ``head_dim + 4 * ceil(head_dim / 64)`` in int8, with a scale
    for each group of 64.
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
                self._copy_rows(pages[index], page, kept)
            self.table.put(index, page)

    def _copy_rows(self, source: Page, to: Page, n: int) -> None:
        for layer in range(len(self.layout.parts)):
            self.layout.view(to, layer)[:, :, :n] = self.layout.view(source, layer)[:, :, :n]

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

    def filled(self) -> Iterator[Filled]:
        """Every array in order."""
        pages = self.table.pages[: max(1, -(-self.length // PAGE))]
        for layer, part in enumerate(self.layout.parts):
            views = [self.layout.view(page, layer) for page in pages]
            for which, kind in enumerate(("keys", "values")):
                pieces = [
                    view[which, :, : max(0, self.length - index * PAGE)]
                    for index, view in enumerate(views)
                ] or [np.empty((part.n_kv_heads, 0, part.row), self.layout.dtype)]
                yield Filled(f"layers.{layer}.{kind}", pieces, part.head_dim)
