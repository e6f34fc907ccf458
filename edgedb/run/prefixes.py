"""What is in memory already: pages by the tokens that they hold and that come before them.

A radix tree whose edges are pages, of 256 tokens or of a last part. Sequences that are being
written are in it as well, up to where they have come: what they have in common with a new prompt is
not read again, and not copied but for the page in which they part.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

import numpy as np

from ..gate import gate
from ..model.kvcache import KVCache
from ..ops.pages import PAGE, Page
from ..ops.selection import Ids


class _Node:
    """A page, and those that follow it, by their tokens' bytes."""

    __slots__ = ("children", "ids", "page")

    def __init__(self, ids: Ids, page: Page | None) -> None:
        self.ids = ids
        self.page = weakref.ref(page) if page is not None else None
        self.children: dict[bytes, _Node] = {}

    def living(self) -> list[tuple[_Node, Page]]:
        """The pages that follow and that somebody still has; others are forgotten."""
        found = []
        for key, child in list(self.children.items()):
            page = child.page() if child.page is not None else None
            if page is None:
                del self.children[key]
            else:
                found.append((child, page))
        return found


class Prefixes:
    """Pages that sequences of a model may share, and those of earlier ones as far as there is room.

    Threads share one.
    """

    def __init__(self) -> None:
        self._root = _Node(np.zeros(0, np.int32), None)
        self._kept: OrderedDict[int, Page] = OrderedDict()  # the least recently used first
        self._room = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Pages that are kept for later."""
        return len(self._kept)

    def limit(self, pages: int) -> None:
        """Keep no more than so many, used last, of those that no sequence holds."""
        with gate.lock, self._lock:
            self._room = max(0, pages)
            self._forget_old()

    def find(self, ids: Ids) -> tuple[list[Page], int]:
        """Pages with the longest beginning of ``ids`` that is there, and its length."""
        pages: list[Page] = []
        length, node = 0, self._root
        with gate.lock, self._lock:
            while length < len(ids):
                rest = ids[length : length + PAGE]
                common, best = 0, None
                for child, page in node.living():
                    n = _common(child.ids, rest)
                    if n > common:
                        common, best = n, (child, page)
                if best is None:
                    break
                node = best[0]
                pages.append(best[1])
                length += common
                if common < PAGE:
                    break
            self._use(pages)
        return pages, length

    def add(self, ids: Ids, cache: KVCache) -> None:
        """``cache`` holds ``ids``: what is filled now may be shared from here on."""
        pages = cache.share(len(ids))
        with gate.lock, self._lock:
            node = self._root
            for index, page in enumerate(pages):
                part = ids[index * PAGE : (index + 1) * PAGE].copy()
                node = self._add_page(node, part, page)
            self._use(pages)

    def _add_page(self, node: _Node, part: Ids, page: Page) -> _Node:
        for child, _ in node.living():
            common = _common(child.ids, part)
            if common == len(part):
                return child  # it holds this, and maybe more
            if common == len(child.ids):
                del node.children[child.ids.tobytes()]  # this holds more
        found = node.children[part.tobytes()] = _Node(part, page)
        return found

    def _use(self, pages: list[Page]) -> None:
        """These are the most recently used, the first ones most of all: without them the others
        cannot be found."""
        if not self._room:
            return
        for page in reversed(pages):
            self._kept[id(page)] = page
            self._kept.move_to_end(id(page))
        self._forget_old()

    def _forget_old(self) -> None:
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)


def _common(a: Ids, b: Ids) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
