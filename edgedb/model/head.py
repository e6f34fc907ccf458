"""The head in two stages: every logit bounded, and exact only where it can matter.

A head of stacked pairs is read as all but the last of them for all rows and the last one, which may
be half a pair, for the tiles whose bound reaches what the sampler looks at. The logits that are
computed have the bits of the full head, the others are -inf, and the sampled token is the same:
``docs/head.md`` has the proof.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EdgeDBError
from ..format.packing import split_blocks
from ..format.tensors import TILE, LinearTensor, PairTensor, kind_text
from ..gate import gate
from ..ops import Ops
from ..ops.activations import quantize
from ..ops.buffer import Buffer

HEADS = ("full", "two-stage")

# Tiles read one by one cost a call each: beyond this share of them, one call reads all.
_FEW = 0.25

_BITS = np.array([bin(i).count("1") for i in range(16)], np.int16)


@dataclass(frozen=True)
class Needed:
    """The logits that a choice depends on: those of ``ids``, and of all others the ``top`` largest,
    if they are within ``margin`` of the largest. 0 and infinity: no such limit."""

    top: int
    margin: float
    ids: tuple[int, ...] = ()


class TwoStageHead:
    """A head of more than one pair, bound to a backend. Immutable; threads share one."""

    def __init__(self, tensor: LinearTensor, ops: Ops, bias: np.ndarray | None = None) -> None:
        """``bias``: float32 ``(rows,)``, added to what the matrix gives."""
        if not isinstance(tensor, PairTensor) or tensor.planes <= 2:
            raise EdgeDBError(
                "a two-stage head needs more than one pair of bit planes, and this model's has "
                f"{kind_text(tensor.kind)}; export it with --embedding 2"
            )
        if ops.kernel == "popcount4":
            raise EdgeDBError("a two-stage head needs exact products: choose another kernel")
        self.ops, self.rows = ops, tensor.rows
        self._bias = bias
        stage1, self._last = _split(tensor)
        self._stage1, self._stage2 = ops.matrix(stage1), ops.matrix(self._last)
        self._n_tiles = tensor.blocks.shape[1]
        self._tiles: list[Any] = []
        self._norms = np.zeros((0, 0), np.float32)
        self._preparing = threading.Lock()

    def logits(self, x: Buffer, wanted: Needed) -> np.ndarray:
        """Logits of ``x [1, cols]``, float32 ``(rows,)``.

        Those that ``wanted`` names have the bits of the full head, others may be -inf.
        """
        out = self.ops.buffer((1, self.rows))
        self.fill(x, out, wanted)
        return out.array[0]

    def fill(self, x: Buffer, out: Buffer, wanted: Needed) -> int:
        """``logits`` into ``out [1, rows]``; returns how many tiles were read in full."""
        read = self._multiply(x, out, wanted)
        if self._bias is not None:
            out.array[0] += self._bias
        return read

    def _biased(self, y: np.ndarray) -> np.ndarray:
        return y if self._bias is None else y + self._bias

    def _multiply(self, x: Buffer, out: Buffer, wanted: Needed) -> int:
        """The same without the bias, which yet counts in the choice of tiles."""
        self._prepare()
        ops, y = self.ops, out.array[0]
        ops.matmul(self._stage1, x, out, 1)
        radius = self.radius(x.array[:1])
        with np.errstate(over="ignore", invalid="ignore"):
            upper = self._biased(y + radius)
        if not np.isfinite(upper).all():  # also the way of a NaN: as the full head
            ops.matmul(self._stage2, x, out, 1, add=True)
            return self._n_tiles

        ids = np.array([i for i in wanted.ids if i < self.rows], np.intp)
        first = self._largest_tiles(self._biased(y), ids, max(wanted.top, 1))
        read = np.zeros(self._n_tiles, bool)
        read[first] = read[ids // TILE] = True
        if read.mean() <= _FEW:
            stage1 = y.copy()
            self._finish(np.flatnonzero(read), x, out)
            upper[ids] = -np.inf
            upper = _by_tile(upper).max(axis=1)
            more = ~read & (upper >= _threshold(self._biased(y), first, ids, wanted))
            if (read | more).mean() <= _FEW:
                self._finish(np.flatnonzero(more), x, out)
                read |= more
                y[~np.repeat(read, TILE)[: self.rows]] = -np.inf
                return int(read.sum())
            y[:] = stage1
        ops.matmul(self._stage2, x, out, 1, add=True)
        return self._n_tiles

    def radius(self, x: np.ndarray) -> np.ndarray:
        """How far stage 2 can move each logit: float32 ``(rows,)``, rounded up.

        Cauchy-Schwarz for each group of 64 columns, on the activations as they are quantized.
        """
        self._prepare()
        q, sx = quantize(x)
        sizes = sx[0].astype(np.float64) * np.sqrt(np.square(q[0].astype(np.float64)).sum(axis=1))
        groups = len(sizes)
        with np.errstate(over="ignore", invalid="ignore"):
            total = self._norms @ np.nextafter(sizes.astype(np.float32), np.float32(np.inf))
            grown = total * np.float32(1 + (2 * groups + 16) * 2.0**-23)
            return np.asarray(grown + np.float32(groups * 2.0**-148), np.float32)

    def _largest_tiles(self, y: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
        """The ``count`` tiles with the largest logit of stage 1, ``ids`` apart."""
        others = y.copy()
        others[ids] = -np.inf
        best = _by_tile(others).max(axis=1)
        if count >= len(best):
            return np.arange(len(best))
        return np.argpartition(best, len(best) - count)[len(best) - count :]

    def _finish(self, tiles: np.ndarray, x: Buffer, out: Buffer) -> None:
        for t in tiles:
            rows = slice(t * TILE, min(t * TILE + TILE, self.rows))
            part = self.ops.wrap(out.array[:1, rows])
            self.ops.matmul(self._tiles[t], x, part, 1, add=True)

    def _prepare(self) -> None:
        """At the first use: norms of the last pair, and its tiles as matrices of their own."""
        with gate.lock, self._preparing:
            if self._tiles:
                return
            last = self._last
            self._norms = group_norms(last)
            self._tiles = [self.ops.matrix(_tile(last, t)) for t in range(self._n_tiles)]


def _split(tensor: PairTensor) -> tuple[PairTensor, PairTensor]:
    """All pairs but the last, and the last, or the half that stands for it."""
    blocks, scale, shape = tensor.blocks, tensor.row_scale, (tensor.rows, tensor.cols)
    whole = tensor.pairs - (tensor.half is None)
    first = PairTensor(blocks[:whole], scale[:whole], *shape)
    return first, PairTensor(blocks[whole:], scale[whole:], *shape, tensor.half)


def _tile(tensor: PairTensor, t: int) -> PairTensor:
    """The 64 rows of tile ``t``, or as many as there are."""
    return PairTensor(
        tensor.blocks[:, t : t + 1],
        tensor.row_scale[:, t * TILE : (t + 1) * TILE],
        min(TILE, tensor.rows - t * TILE),
        tensor.cols,
        None if tensor.half is None else tensor.half[t : t + 1],
    )


def group_norms(tensor: PairTensor) -> np.ndarray:
    """Norm of each row's weights in each group of columns, of one pair or of half a pair: float32
    ``[rows, groups]``, rounded up.

    From ``(c1 b1 + c2 b2)^2 = c1^2 b1 + c2^2 b2 + 2 c1 c2 b1 b2``.
    """
    ((blocks, row_scale),) = tensor.terms()
    norms = np.empty((tensor.rows, blocks.shape[1]), np.float32)
    for t, (planes, codes) in enumerate(zip(*split_blocks(blocks), strict=True)):
        low, high, c = planes & 15, planes >> 4, codes.astype(np.int64)
        n1, n2, both = (_BITS[b].sum(axis=1, dtype=np.int64) for b in (low, high, low & high))
        if c.shape[1] == 2:
            c1, c2 = c[:, 0], c[:, 1]
            squares = c1 * c1 * n1 + c2 * c2 * n2 + 2 * c1 * c2 * both
        else:  # both nibbles are of b1
            squares = c[:, 0] ** 2 * (n1 + n2)
        rows = slice(t * TILE, min(t * TILE + TILE, tensor.rows))
        scale = np.abs(row_scale[rows].astype(np.float64))
        exact = np.sqrt(squares.T[: len(scale)]) * scale[:, None]
        norms[rows] = np.nextafter(exact.astype(np.float32), np.float32(np.inf))
    return norms


def _by_tile(values: np.ndarray) -> np.ndarray:
    """``(rows,)`` as ``(tiles, 64)``, filled with -inf."""
    missing = -len(values) % TILE
    if missing:
        values = np.concatenate([values, np.full(missing, -np.inf, values.dtype)])
    return values.reshape(-1, TILE)


def _threshold(y: np.ndarray, tiles: np.ndarray, ids: np.ndarray, wanted: Needed) -> np.float32:
    """No logit below this matters; from the exact ones in ``tiles``, ``ids`` apart."""
    exact = y.copy()
    exact[ids] = -np.inf
    exact = _by_tile(exact)[tiles].ravel()
    threshold = float(exact.max()) - wanted.margin
    if 0 < wanted.top <= len(exact):
        threshold = max(threshold, float(np.partition(exact, -wanted.top)[-wanted.top]))
    return np.nextafter(np.float32(threshold), np.float32(-np.inf))
