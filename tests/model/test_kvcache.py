"""Pages of a cache: shared by forks, copied by whoever writes where another may read."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb.model.kvcache import KV_DTYPES, KVCache
from edgedb.ops.pages import PAGE

EDGES = (PAGE - 1, PAGE, PAGE + 1)


def ids(n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, 300, n)]


@pytest.fixture(scope="module", params=KV_DTYPES)
def model(request: pytest.FixtureRequest, long_model: Path) -> edgedb.Model:
    return edgedb.load(long_model, context=800, kv_dtype=request.param)


def content(cache: KVCache) -> list[bytes]:
    return [filled.rows.tobytes() for filled in cache.filled()]


def cache_of(model: edgedb.Model, tokens: list[int]) -> KVCache:
    """What ``tokens`` leave in a cache of their own."""
    cache = empty(model)
    read(model, cache, tokens)
    return cache


def empty(model: edgedb.Model) -> KVCache:
    return model.network.cache(800, model.kv_dtype)


def read(model: edgedb.Model, cache: KVCache, tokens: list[int]) -> None:
    for _ in model.network.passes(tokens, cache, model.network.state(), None):
        pass


@pytest.mark.parametrize("length", EDGES)
def test_a_fork_shares_pages_until_one_of_both_writes(model: edgedb.Model, length: int) -> None:
    first = cache_of(model, ids(length))
    before = content(first)
    second = empty(model)
    second.copy_from(first)
    assert all(a is b for a, b in zip(first.table.pages, second.table.pages, strict=True))
    read(model, second, [7, 8, 9])
    assert content(first) == before
    read(model, first, [11, 12])
    if model.ops.name == "native":  # the same bits, however the tokens are cut
        assert content(first) == content(cache_of(model, [*ids(length), 11, 12]))
        assert content(second) == content(cache_of(model, [*ids(length), 7, 8, 9]))
    for page in range(length // PAGE):  # full ones stay common
        assert first.table.pages[page] is second.table.pages[page]


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("back", (1, 2, 200))
def test_who_goes_back_writes_elsewhere(model: edgedb.Model, length: int, back: int) -> None:
    first = cache_of(model, ids(length))
    second = empty(model)
    second.copy_from(first)
    before = content(second)
    first.truncate(length - back)
    read(model, first, ids(back + 2, seed=1))
    assert content(second) == before
    if model.ops.name == "native":
        expected = cache_of(model, [*ids(length - back), *ids(back + 2, seed=1)])
        assert content(first) == content(expected)


def test_the_owner_goes_on_in_its_page_without_a_copy(model: edgedb.Model) -> None:
    first = cache_of(model, ids(100))
    page = first.table.pages[0]
    second = empty(model)
    second.copy_from(first)
    read(model, first, [5])
    assert first.table.pages[0] is page
    read(model, second, [5])
    assert second.table.pages[0] is not page
    if model.ops.name == "native":
        assert content(first) == content(second)


def test_pages_go_with_the_last_who_holds_them(model: edgedb.Model) -> None:
    first = cache_of(model, ids(300))
    second = empty(model)
    second.copy_from(first)
    pages = [weakref.ref(page) for page in first.table.pages]
    del first
    gc.collect()
    assert all(page() is not None for page in pages)
    del second
    gc.collect()
    assert all(page() is None for page in pages)
