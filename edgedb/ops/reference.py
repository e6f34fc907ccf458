"""The numerics in numpy, written to be read. Native kernels are tested against an exact oracle;
this file is the definition in a form that also runs a model, slowly.

It differs from the definition in two stated ways. A fused multiply-add is emulated in float64,
which rounds twice: the last bit of one in about 2^29 accumulations may differ. Dense (float16,
float32) products, norms and attention add in numpy's order: relative differences near 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..format.packing import gather_rows, levels, unpack_int8
from ..format.tensors import GROUP, DenseTensor, Int8Tensor, LinearTensor, PairTensor
from .activations import quantize
from .buffer import Buffer, aligned_zeros
from .functions import FUNCTIONS, clamped_gate, softcap
from .narrow_attention import Found, Scoring, find, fma
from .narrow_cache import pack_rows
from .pages import CacheLayer, PageLayout, PageTable
from .program import Program
from .selection import Floats, NumpySelection
from .values import Value
from .walker import Walker
from .weights import Weights


class ReferenceMatrix:
    """A matrix, expanded on first use: integer weights to one byte, dense ones to float32."""

    def __init__(self, tensor: LinearTensor) -> None:
        self.tensor = tensor
        self._planes: list[Plane] | None = None
        self._dense: np.ndarray | None = None

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """``x`` float32 ``[n, cols]`` to ``x W^T`` float32 ``[n, rows]``, by the format's rules."""
        if isinstance(self.tensor, DenseTensor):
            if self._dense is None:
                self._dense = self.tensor.weight.astype(np.float32, copy=False)
            return x @ self._dense.T
        if self._planes is None:
            self._planes = _planes(self.tensor)
        q, sx = quantize(x)
        y = np.zeros((len(x), self.tensor.rows), np.float32)
        for plane in self._planes:
            acc = np.zeros_like(y)
            for g, weights in enumerate(plane.levels):
                # Sums of 64 products of int8 stay below 2^24: exact in float32 in any order.
                dot = q[:, g].astype(np.float32) @ weights.astype(np.float32)
                scale = sx[:, g, None]
                if plane.scales is not None:
                    scale = scale * plane.scales[g]
                acc = fma(scale, dot, acc)
            y = y + (acc if plane.row_scale is None else plane.row_scale * acc)
        return y


@dataclass(frozen=True)
class Plane:
    """Integer weights with their scales: those of a group of columns, or those of a row."""

    levels: np.ndarray  # int8 (groups, 64, rows)
    scales: np.ndarray | None = None  # float32 (groups, rows)
    row_scale: np.ndarray | None = None  # float32 (rows,)


def _planes(tensor: PairTensor | Int8Tensor) -> list[Plane]:
    groups = -(-tensor.cols // GROUP)

    def by_group(matrix: np.ndarray) -> np.ndarray:
        padded = np.zeros((tensor.rows, groups * GROUP), np.int8)
        padded[:, : tensor.cols] = matrix
        return np.ascontiguousarray(padded.reshape(tensor.rows, groups, GROUP).transpose(1, 2, 0))

    if isinstance(tensor, Int8Tensor):
        codes, scales = unpack_int8(tensor)
        return [Plane(by_group(codes), scales=np.ascontiguousarray(scales.T))]
    return [
        Plane(by_group(levels(blocks, tensor.rows, tensor.cols)), row_scale=scale)
        for blocks, scale in tensor.terms()
    ]


def store(cache: CacheLayer, k: Floats, v: Floats, position: int) -> None:
    """k and v ``[n, n_kv_heads * head_dim]`` at ``position`` and on, in the cache's type."""
    keys, values = (x.reshape(len(x), -1, cache.head_dim).transpose(1, 0, 2) for x in (k, v))
    if cache.dtype == np.int8:
        keys, values = pack_rows(keys), pack_rows(values)
    with np.errstate(over="ignore"):  # beyond float16 is infinite
        cache.store(keys, values, position)


def find_in_floats(
    q: Floats, keys: np.ndarray, values: np.ndarray, distance: np.ndarray, window: int, how: Scoring
) -> Found:
    """``narrow_attention.find`` for rows of numbers, ``[length, head_dim]``, all at once."""
    scores = (q @ keys.astype(np.float32).T) * how.scale
    if how.cap is not None:
        scores = softcap(scores, how.cap)
    if how.slope is not None:
        scores -= how.slope * distance.astype(np.float32)
    scores[(distance < 0) | (distance >= window)] = -np.inf
    largest = scores.max(axis=1)
    p = np.exp(scores - largest[:, None])
    return Found(largest, p.sum(axis=1), p @ values.astype(np.float32))


class ReferenceOps(NumpySelection):
    """``Ops`` in plain numpy."""

    name = "numpy"
    isa = "numpy"
    kernel = ""
    threads = 1

    def buffer(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        return Buffer(aligned_zeros(shape, dtype))

    def wrap(self, array: np.ndarray) -> Buffer:
        return Buffer(array)

    def matrix(self, tensor: LinearTensor) -> ReferenceMatrix:
        return ReferenceMatrix(tensor)

    def bind(self, program: Program, weights: Weights) -> Walker:
        return Walker(program, weights, self)

    def page_table(self, layout: PageLayout, capacity: int) -> PageTable:
        return PageTable(layout, capacity)

    def matmul(
        self, matrix: ReferenceMatrix, x: Buffer, out: Buffer, n: int, add: bool = False
    ) -> None:
        y = matrix.multiply(x.array[:n])
        if add:
            out.array[:n] += y
        else:
            out.array[:n] = y

    def embed(self, matrix: ReferenceMatrix, ids: np.ndarray) -> Floats:
        return gather_rows(matrix.tensor, ids)

    def linear(self, matrix: ReferenceMatrix, x: Floats) -> Floats:
        return matrix.multiply(x)

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        mean_square = np.mean(x * x, axis=1, keepdims=True, dtype=np.float32)
        out: Floats = x * (1 / np.sqrt(mean_square + np.float32(eps))) * weight
        return out

    def layer_norm(self, x: Floats, weight: Floats, shift: Floats, eps: float) -> Floats:
        centered = x - np.mean(x, axis=1, keepdims=True, dtype=np.float32)
        variance = np.mean(centered * centered, axis=1, keepdims=True, dtype=np.float32)
        out: Floats = centered * (1 / np.sqrt(variance + np.float32(eps))) * weight + shift
        return out

    def activate(self, name: str, x: Floats) -> Floats:
        return FUNCTIONS[name](x)

    def rope(self, x: Floats, cos: Floats, sin: Floats) -> Floats:
        first, second = np.split(x, 2, axis=-1)
        c, s = cos[:, None], sin[:, None]
        return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)

    def clamped_gate(self, gate: Floats, up: Floats, alpha: float, limit: float) -> Floats:
        return clamped_gate(gate, up, alpha, limit)

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
        n, n_kv_heads, head_dim = len(q), value["n_kv_heads"], value["head_dim"]
        length = position + n
        store(cache, k, v, position)
        cached = cache.rows(length)

        heads_per_kv = value["n_heads"] // n_kv_heads
        q = q.reshape(n, n_kv_heads, heads_per_kv, head_dim)
        out = np.empty_like(q)
        # A query sees its own key and those before it, as far as its window reaches.
        distance = (position + np.arange(n))[:, None] - np.arange(length)[None, :]
        window = value["window"] or length
        see = find if cache.dtype == np.int8 else find_in_floats
        for kv in range(n_kv_heads):
            keys, values = (rows[kv, :length] for rows in cached)
            for h in range(heads_per_kv):
                head = kv * heads_per_kv + h
                slope = None if value["slopes"] is None else np.float32(value["slopes"][head])
                how = Scoring(np.float32(value["scale"]), value["cap"], slope)
                found = see(q[:, kv, h], keys, values, distance, window, how)
                total = found.total
                if sinks is not None:
                    largest = np.maximum(found.largest, sinks[head])
                    shrunk = np.exp(found.largest - largest)
                    total = total * shrunk + np.exp(sinks[head] - largest)
                    found.values *= shrunk[:, None]
                out[:, kv, h] = found.values / total[:, None]
        return out.reshape(n, -1)
