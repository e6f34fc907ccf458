"""``Ops`` compiled by numba: no compiler at installation, machine code cached after the first run.

Matrix products have the bits of the native kernels; the rest differs in its order of summation.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from ..format.packing import gather_rows
from ..format.tensors import HALF_BYTES, DenseTensor, Int8Tensor, LinearTensor
from ..gate import gate
from . import jit_layers, jit_matmul
from .buffer import Buffer, aligned_zeros
from .cores import usable_cpus
from .functions import clamped_gate
from .pages import CacheLayer, PageLayout, PageTable
from .program import Program
from .reference import ReferenceOps, store
from .selection import Floats, NumpySelection
from .values import Value
from .walker import Walker
from .weights import Weights

# From this many tokens on, expanding a block once for all of them pays.
MANY_TOKENS = 3
# Queries that share one conversion of the keys from float16; decode has one.
TOKENS_PER_TASK = 16
# Below this many bytes of weights, waking a second thread costs more than it saves.
PARALLEL_BYTES = 1 << 16
# GNU OpenMP, which numba prefers, spins for milliseconds before it sleeps. When another process
# wants a core, that starves the thread it waits for: 12 tokens a second instead of 34 on two busy
# cores. Read when the pool is loaded, which is at the first parallel call.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_REFERENCE = ReferenceOps()

# numba's own thread pool ("workqueue") aborts the process when two threads enter it. It is entered
# inside the gate, as every kernel is: the first call of one compiles it, under a lock of numba's.
_POOL = threading.Lock()


class JitMatrix:
    """A matrix and its arrays as the kernels take them."""

    def __init__(self, tensor: LinearTensor) -> None:
        self.tensor = tensor
        self.cols = tensor.cols
        self.is_parallel = tensor.nbytes > PARALLEL_BYTES
        if isinstance(tensor, DenseTensor):
            self.arrays = [_read_only(_as_bits(tensor.weight))]
        elif isinstance(tensor, Int8Tensor):
            self.arrays = [_read_only(tensor.codes), _read_only(tensor.scales)]
        else:
            halves = np.empty((0, *tensor.blocks.shape[1:3], HALF_BYTES), np.uint8)
            if tensor.half is not None:
                halves = tensor.half[None]
            arrays = (tensor.blocks, halves, tensor.row_scale)
            self.arrays = [_read_only(array) for array in arrays]


def _as_bits(array: np.ndarray) -> np.ndarray:
    """float16 as its bits, because numba computes nothing with float16; others as they are."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


def _read_only(array: np.ndarray) -> np.ndarray:
    """One type for arrays in memory and in a mapped file, so that each kernel compiles once."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


class NumbaOps(NumpySelection):
    """``Ops`` in numba. ``threads`` beyond what numba was started with are not used."""

    name = "numba"
    kernel = ""

    def __init__(self, threads: int | None = None) -> None:
        most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        self.threads = 1 if _forked else max(1, min(threads or usable_cpus(), most))
        self.isa = f"llvm-{llvmlite.binding.get_host_cpu_name()}"
        self._scratch: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
        _alive.add(self)

    def buffer(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        return self.wrap(aligned_zeros(shape, dtype))

    def wrap(self, array: np.ndarray) -> Buffer:
        return Buffer(array, _as_bits(array))

    def matrix(self, tensor: LinearTensor) -> JitMatrix:
        return JitMatrix(tensor)

    def bind(self, program: Program, weights: Weights) -> Walker:
        return Walker(program, weights, self)

    def page_table(self, layout: PageLayout, capacity: int) -> PageTable:
        return PageTable(layout, capacity)

    def embed(self, matrix: JitMatrix, ids: np.ndarray) -> Floats:
        return gather_rows(matrix.tensor, ids)

    def linear(self, matrix: JitMatrix, x: Floats) -> Floats:
        out = np.empty((len(x), matrix.tensor.rows), np.float32)
        self.matmul(matrix, self.wrap(x), self.wrap(out), len(x))
        return out

    def matmul(self, matrix: JitMatrix, x: Buffer, out: Buffer, n: int, add: bool = False) -> None:
        # The lock also keeps the scratch of quantized activations to one call at a time.
        with gate.lock, _POOL:
            parts = self.threads if matrix.is_parallel else 1
            if parts > 1:
                numba.set_num_threads(parts)
            if isinstance(matrix.tensor, DenseTensor):
                arguments = (*matrix.arrays, x.ptr, out.ptr, n, add)
                self._run(
                    parts,
                    matrix.tensor.rows,
                    jit_matmul.dense_rows,
                    jit_matmul.dense_parallel,
                    arguments,
                )
                return
            q, qf, sx = self._quantized(n, matrix.cols)
            jit_matmul.quantize(x.ptr, n, matrix.cols, q, qf, sx)
            is_int8 = isinstance(matrix.tensor, Int8Tensor)
            tiles = -(-matrix.tensor.rows // 64)
            if n >= MANY_TOKENS:
                serial: Callable[..., None] = jit_matmul.pairs_many_tiles
                parallel: Callable[..., None] = jit_matmul.pairs_many_parallel
                if is_int8:
                    serial, parallel = jit_matmul.int8_many_tiles, jit_matmul.int8_many_parallel
                self._run(parts, tiles, serial, parallel, (*matrix.arrays, qf, sx, out.ptr, n, add))
                return
            serial, parallel = jit_matmul.pairs_tiles, jit_matmul.pairs_parallel
            if is_int8:
                serial, parallel = jit_matmul.int8_tiles, jit_matmul.int8_parallel
            for t in range(n):
                self._run(
                    parts, tiles, serial, parallel, (*matrix.arrays, q[t], sx[t], out.ptr[t], add)
                )

    @staticmethod
    def _run(
        parts: int,
        count: int,
        serial: Callable[..., None],
        parallel: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        if parts > 1:
            parallel(parts, count, *arguments)
        else:
            serial(0, count, *arguments)

    def _quantized(self, n: int, cols: int) -> tuple[np.ndarray, ...]:
        """Scratch for ``n`` quantized rows, kept for one token and for one batch of each width."""
        groups = -(-cols // 64)
        key = (min(n, 2), groups)
        scratch = self._scratch.get(key)
        if scratch is None or len(scratch[0]) < n:
            scratch = (
                np.empty((n, 64 * groups), np.int16),
                np.empty((n, 64 * groups), np.float32),
                np.empty((n, groups), np.float32),
            )
            self._scratch[key] = scratch
        return scratch

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        out = np.empty_like(x)
        with gate.lock:
            jit_layers.rmsnorm(x, _read_only(weight), out, len(x), eps)
        return out

    def layer_norm(self, x: Floats, weight: Floats, shift: Floats, eps: float) -> Floats:
        out = np.empty_like(x)
        with gate.lock:
            jit_layers.layernorm(x, _read_only(weight), _read_only(shift), out, eps)
        return out

    def activate(self, name: str, x: Floats) -> Floats:
        out = np.empty_like(x)
        serial, parallel = jit_layers.ACTIVATIONS[name]
        if self.threads > 1 and len(x) >= 8:
            with gate.lock, _POOL:
                numba.set_num_threads(self.threads)
                parallel(x, out)
        else:
            with gate.lock:
                serial(x, out)
        return out

    def rope(self, x: Floats, cos: Floats, sin: Floats) -> Floats:
        out = np.empty_like(x)
        with gate.lock:
            jit_layers.rope(x, _read_only(cos), _read_only(sin), out)
        return out

    def clamped_gate(self, gate: Floats, up: Floats, alpha: float, limit: float) -> Floats:
        return clamped_gate(gate, up, alpha, limit)  # of few columns beside the products

    def attention(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cache: CacheLayer,
        position: int,
        value: Value,
        sinks: Floats | None,
    ) -> Floats:
        if cache.dtype == np.int8:  # right, and not fast
            return _REFERENCE.attention(q, k, v, cache, position, value, sinks)
        n = len(q)
        store(cache, k, v, position)
        k_cache, v_cache = (_as_bits(rows) for rows in cache.rows(position + n))
        out = np.empty_like(q)
        scale, window = np.float32(value["scale"]), value["window"] or position + n
        cap = np.float32(value["cap"] or 0)
        slopes = np.array(value["slopes"] or (), np.float32)
        if sinks is None:
            sinks = np.full(value["n_heads"], -np.inf, np.float32)
        sinks = _read_only(sinks)
        which = (position, scale, cap, window, slopes)
        arguments = (TOKENS_PER_TASK, q, k_cache, v_cache, sinks, out, *which)
        if self.threads > 1 and value.width * n * min(window, position + n) > 1 << 17:
            with gate.lock, _POOL:
                numba.set_num_threads(self.threads)
                jit_layers.attention_parallel(*arguments)
        else:
            with gate.lock:
                jit_layers.attention(*arguments)
        return out


# GNU OpenMP ends a forked child that enters the pool of its parent: one thread remains.
_alive: weakref.WeakSet[NumbaOps] = weakref.WeakSet()
_forked = False  # from a process whose pool was running


def _leave_pool() -> None:
    global _forked
    try:
        numba.threading_layer()
    except ValueError:  # none was started
        return
    _forked = True
    for ops in _alive:
        ops.threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_pool)
