"""The tree of what is in memory: found by tokens, kept by age."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb.model.kvcache import KVCache
from edgedb.ops import library
from edgedb.ops.pages import PAGE
from edgedb.run.prefixes import Prefixes

EDGES = (PAGE - 1, PAGE, PAGE + 1)


def ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 300, n).astype(np.int32)


@pytest.fixture(scope="module")
def model(long_model: Path) -> edgedb.Model:
    backend = "native" if library.available()[0] else None
    return edgedb.load(long_model, context=800, backend=backend)


def cache_of(model: edgedb.Model, tokens: np.ndarray) -> KVCache:
    cache = model.network.cache(800)
    cache.reserve(len(tokens))
    cache.length = len(tokens)
    return cache


@pytest.mark.parametrize("length", [1, *EDGES, 2 * PAGE, 700])
@pytest.mark.parametrize("common", [0, 1, *EDGES, 600])
def test_the_longest_beginning_is_found(model: edgedb.Model, length: int, common: int) -> None:
    prefixes = Prefixes()
    tokens = ids(length)
    cache = cache_of(model, tokens)
    prefixes.add(tokens, cache)
    common = min(common, length)
    wanted = np.concatenate([tokens[:common], np.full(50, 2, np.int32)])
    pages, found = prefixes.find(wanted)
    assert found == common
    assert pages == cache.table.pages[: -(-common // PAGE)]


def test_the_longest_of_several(model: edgedb.Model) -> None:
    prefixes = Prefixes()
    whole = ids(400)
    caches = [cache_of(model, whole[:n]) for n in (100, 400, 300)]
    for cache in caches:
        prefixes.add(whole[: cache.length], cache)
    pages, found = prefixes.find(whole)
    assert found == 400 and pages[1] is caches[1].table.pages[1]
    assert prefixes.find(ids(400, seed=1))[1] == 0


def test_what_nobody_holds_is_gone_unless_it_is_kept(model: edgedb.Model) -> None:
    for room in (0, 3):
        prefixes = Prefixes()
        prefixes.limit(room)
        for seed in range(2):  # two pages each: of the first one, the first page is left
            cache = cache_of(model, ids(300, seed))
            prefixes.add(ids(300, seed), cache)
        del cache
        gc.collect()
        found = [prefixes.find(ids(300, seed))[1] for seed in range(2)]
        assert found == ([PAGE, 300] if room else [0, 0])
    prefixes.limit(0)
    gc.collect()
    assert len(prefixes) == 0 and prefixes.find(ids(300, 1))[1] == 0


native = pytest.mark.skipif(not library.available()[0], reason="others do not promise bits")


@native
@pytest.mark.parametrize("n", EDGES)
def test_a_prompt_is_not_read_again(model: edgedb.Model, n: int) -> None:
    prompt = ids(n).tolist()
    alone = model.generate([*prompt, 7, 8], max_tokens=5, temperature=0)
    first = model.session()
    stream = first.generate(prompt, stream=True, max_tokens=5, temperature=0)
    next(stream)  # it is being written
    other = model.generate([*prompt, 7, 8], max_tokens=5, temperature=0)
    assert other.tokens == alone.tokens
    assert (alone.stats.read_tokens, other.stats.read_tokens) == (n + 2, 2)
    list(stream)


@native
def test_a_model_keeps_beginnings_where_there_is_room(long_model: Path) -> None:
    model = edgedb.load(long_model, context=600, cache_tokens=1024, backend="native")
    prompt = ids(300).tolist()
    for expected in (300, 1):
        assert model.generate(prompt, max_tokens=4).stats.read_tokens == expected
