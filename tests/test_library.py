"""Pointers for C keep alive what is behind them, whoever lets go of the rest."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from kernels import KINDS, ops_of, pair_tensor

from edgedb.llama import Layer
from edgedb.ops import native
from edgedb.ops.buffer import aligned_zeros


def gone(*references: weakref.ref[Any]) -> list[bool]:
    gc.collect()
    return [reference() is None for reference in references]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8])
def test_a_buffers_pointer_holds_its_array(dtype: Any) -> None:
    array = np.zeros((3, 5), dtype)
    seen = weakref.ref(array)
    pointer = ops_of().wrap(array).ptr
    del array
    assert gone(seen) == [False]
    del pointer
    assert gone(seen) == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_holds_its_arrays(kind: str) -> None:
    tensor = KINDS[kind](70, 130)
    arrays = [value for value in vars(tensor).values() if isinstance(value, np.ndarray)]
    seen = [weakref.ref(array) for array in arrays]
    struct = ops_of().matrix(tensor).struct
    del tensor, arrays
    assert gone(*seen) == [False] * len(seen)
    del struct
    assert gone(*seen) == [True] * len(seen)


def test_a_fused_layer_holds_weights_and_buffers() -> None:
    ops = ops_of()
    arrays = [np.ones(64, np.float32) for _ in range(8)]
    seen = [weakref.ref(array) for array in arrays]
    tensor = pair_tensor(64, 64, 1)
    weights = weakref.ref(tensor.blocks)
    a, b, c, d, e, f, g, h = map(ops.wrap, arrays)
    matrix = ops.matrix(tensor)
    layer = Layer(a, matrix, matrix, b, matrix, matrix)
    structs = ops.fuse_layer(layer, c, d, 1e-5), ops.fuse_buffers(e, f, g, h)
    del arrays, a, b, c, d, e, f, g, h, matrix, layer, tensor
    assert gone(*seen, weights) == [False] * 9
    del structs
    assert gone(*seen, weights) == [True] * 9


class Library:
    """The C library with some functions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self._real = native.lib
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_context_holds_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    names = ("edb_pool_destroy", "edb_context_destroy")
    replaced = {name: lambda pointer, name=name: ended.append(name) for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(native, "lib", Library(**replaced))
        ops = native.NativeOps(threads=2)
    context = ops._context  # what a running operation has been given
    del ops
    gc.collect()
    assert ended == []
    del context
    assert ended == ["edb_context_destroy", "edb_pool_destroy"]


def test_an_operation_holds_its_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch of a thread goes with what the thread keeps outside its frames."""
    made: list[weakref.ref[np.ndarray]] = []
    held: list[bool] = []

    def remembered(*arguments: Any) -> np.ndarray:
        array = aligned_zeros(*arguments)
        made.append(weakref.ref(array))
        return array

    def edb_matmul(*arguments: Any) -> int:
        vars(ops._scratch).clear()
        held.append(gone(made[0]) == [False])
        return 0

    monkeypatch.setattr(native, "aligned_zeros", remembered)
    ops = native.NativeOps(threads=1)
    matrix, x, out = ops.matrix(pair_tensor(64, 64, 1)), ops.buffer((1, 64)), ops.buffer((1, 64))
    monkeypatch.setattr(native, "lib", Library(edb_matmul=edb_matmul))
    ops.matmul(matrix, x, out, 1)
    assert held == [True]
