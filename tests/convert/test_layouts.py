"""Rows in a checkpoint's order, put in ours: each against a loop over heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgedb.convert.sources.layouts import Behind, ByHead, Neighbours, Transposed
from edgedb.model.config import ModelConfig

CONFIG = ModelConfig("llama", 320, 24, 96, 2, 6, 2, 4, 128)  # 6 queries, 2 keys, of 4 channels
ROWS = np.arange(CONFIG.qkv_size, dtype=np.float32)


def matrix(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, rows + 0.5], axis=1)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_rows_by_head(n_kv_heads: int) -> None:
    config = replace(CONFIG, n_kv_heads=n_kv_heads)
    names = []  # of the rows, as they are stored
    for kv in range(n_kv_heads):
        queries = range(kv * 6 // n_kv_heads, (kv + 1) * 6 // n_kv_heads)
        heads = [*(f"q{q}" for q in queries), f"k{kv}", f"v{kv}"]
        names += [f"{head}.{channel}" for head in heads for channel in range(4)]
    wanted = sorted(names, key=lambda name: ("qkv".index(name[0]), name))
    order = np.array([names.index(name) for name in wanted], np.float32)
    stored = np.arange(len(names), dtype=np.float32)
    np.testing.assert_array_equal(ByHead().read(stored, config), order)
    np.testing.assert_array_equal(ByHead().read(matrix(stored), config), matrix(order))


@pytest.mark.parametrize(("rotary_dim", "head"), [(None, [0, 2, 1, 3]), (2, [0, 1, 2, 3])])
def test_neighbours(rotary_dim: int | None, head: list[int]) -> None:
    config = replace(CONFIG, rotary_dim=rotary_dim)
    turned = [4 * i + channel for i in range(8) for channel in head]  # queries and keys
    order = np.array([*turned, *range(32, 40)], np.float32)
    np.testing.assert_array_equal(Neighbours().read(ROWS, config), order)
    np.testing.assert_array_equal(Neighbours().read(matrix(ROWS), config), matrix(order))


def test_what_is_stored_in_another_shape() -> None:
    assert Transposed().stored((3, 5)) == (5, 3) and Transposed().stored((3,)) == (3,)
    weight = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(Transposed().read(weight, CONFIG), weight.T)
    assert Behind(2).stored((3, 5)) == (5, 5)
    np.testing.assert_array_equal(Behind(2).read(weight, CONFIG), weight[2:])
