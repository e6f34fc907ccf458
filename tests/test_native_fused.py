"""A layer in one call against the operations that ``llama.py`` lists: the same bits."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from kernels import EVERYWHERE, ISAS, KINDS, assert_same_bits, ops_of, random

from edgedb.config import ModelConfig
from edgedb.errors import NativeError
from edgedb.kvcache import KVCache
from edgedb.llama import Llama, RunState
from edgedb.ops import native
from edgedb.tensors import LinearTensor

CONFIG = ModelConfig("llama", 90, 72, 100, 6, 6, 2, 18, 512)


def llama_of(ops: native.NativeOps) -> Llama:
    """Every kind of matrix in every place of a layer."""
    kinds = itertools.cycle(KINDS.values())
    linears: dict[str, LinearTensor] = {}
    for i, (name, shape) in enumerate(CONFIG.linear_shapes().items()):
        linears[name] = next(kinds)(*shape)
        if i % 7 == 6:
            next(kinds)  # 6 kinds and 4 matrices a layer: no matrix has the same kind everywhere
    norms = {k: random(4).uniform(0, 0.1, n).astype("f") for k, n in CONFIG.norm_shapes().items()}
    return Llama(CONFIG, linears, norms, ops, 400)


def read(
    llama: Llama, steps: list[int], fused: bool, dtype: str = "float16"
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits after every step of so many tokens, and the caches."""
    cache, state = KVCache(CONFIG, llama.ops, 400, dtype), RunState(CONFIG, llama.ops)
    if not fused:
        state.fused = None
    logits = []
    tokens = [7 * t * t % 90 for t in range(sum(steps))]
    for n in steps:
        got = llama.forward(tokens[cache.length : cache.length + n], cache, state)
        assert got is not None
        logits.append(got.copy())
    return np.array(logits), [buffer.array for pair in cache.layers for buffer in pair]


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("steps", [[1, 1, 2], [40, 1, 1], [128, 128, 30, 1, 5, 1]])
def test_fused_layer_has_the_bits_of_its_operations(steps: list[int], dtype: str) -> None:
    expected, caches = read(llama_of(ops_of()), steps, fused=False, dtype=dtype)
    for isa, threads in EVERYWHERE:
        got, got_caches = read(llama_of(ops_of(isa, threads)), steps, fused=True, dtype=dtype)
        assert_same_bits(got, expected)
        for a, b in zip(got_caches, caches, strict=True):
            np.testing.assert_array_equal(a, b)


def test_sessions_on_several_threads_share_a_pool() -> None:
    llama = llama_of(ops_of(ISAS[0], 2))
    expected, _ = read(llama, [20, 1, 1, 1], fused=True)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            got, _ = read(llama, [20, 1, 1, 1], fused=index % 2 == 0)
            if not np.array_equal(got, expected, equal_nan=True):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sizes_that_disagree_are_refused() -> None:
    ops = ops_of()
    llama = llama_of(ops)
    cache, state = KVCache(CONFIG, ops, 20), RunState(CONFIG, ops)
    fused, (k, v) = llama.layers[0].fused, cache.layers[0]
    with pytest.raises(NativeError, match="out of range"):
        ops.fused_layer(fused, state.fused, k, v, 5, 16, cache.shape)
    with pytest.raises(NativeError, match="a size is zero"):
        ops.fused_layer(fused, state.fused, k, v, 0, 0, cache.shape)
    fused.attn_out = llama.layers[0].mlp_down.struct
    with pytest.raises(NativeError, match="sizes disagree"):
        ops.fused_layer(fused, state.fused, k, v, 1, 0, cache.shape)
