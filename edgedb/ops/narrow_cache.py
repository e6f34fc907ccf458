"""An int8 key/value cache. Its rows, as sessions are saved: codes, then a float32 scale for each
group of 64 columns. Its blocks, as they lie in a page: as matrices are multiplied, keys as the rows
of one and values as the columns (``native/include/edgedb.h``)."""

from __future__ import annotations

import numpy as np

from ..format.packing import QUADS
from ..format.tensors import GROUP, TILE
from .activations import quantize


def row_bytes(head_dim: int) -> int:
    """Bytes of one row."""
    return head_dim + 4 * -(-head_dim // GROUP)


def pack_rows(x: np.ndarray) -> np.ndarray:
    """float32 ``[..., head_dim]`` to int8 ``[..., row_bytes]``, by the rules of activations."""
    *shape, head_dim = x.shape
    q, sx = quantize(x.reshape(-1, head_dim))
    codes = q.reshape(len(q), -1)[:, :head_dim]
    rows = np.concatenate([codes, sx.view(np.int8).reshape(len(q), -1)], axis=1)
    return rows.reshape(*shape, -1)


def unpack_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """int8 ``[..., row_bytes]`` to float32 ``[..., head_dim]``: ``scale * code``."""
    scales = row_scales(rows, head_dim)
    columns = np.arange(head_dim) // GROUP
    with np.errstate(invalid="ignore"):
        wide: np.ndarray = scales[..., columns] * rows[..., :head_dim].astype(np.float32)
    return wide


def row_scales(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The scales in ``rows``, float32 ``[..., groups]``."""
    return np.ascontiguousarray(rows[..., head_dim:]).view(np.float32)


def block_bytes(head_dim: int, positions: int) -> int:
    """Bytes of one head's keys, or values, of so many positions, whole tiles of 64, in a page."""
    return positions * (GROUP + 4) * -(-head_dim // GROUP)


class NarrowBlocks:
    """Keys and values of some heads as they lie in a page."""

    def __init__(self, data: np.ndarray, head_dim: int) -> None:
        """data: uint8 ``[2, heads, block_bytes]``, which is looked at and written to."""
        heads, groups = data.shape[1], -(-head_dim // GROUP)
        tiles = data.shape[2] // block_bytes(head_dim, TILE)
        cut = tiles * TILE * GROUP * groups
        codes, scales = data[:, :, :cut].view(np.int8), data[:, :, cut:].view(np.float32)
        self.head_dim, self.groups = head_dim, groups
        self._k = codes[0].reshape(heads, tiles, groups, QUADS, TILE, 4)
        self._v = codes[1].reshape(heads, groups, tiles, QUADS, GROUP, 4)
        self._k_scales = scales[0].reshape(heads, tiles, groups, TILE)
        self._v_scales = scales[1].reshape(heads, groups, tiles * TILE)

    def rows(self, which: int, n: int) -> np.ndarray:
        """Keys (0) or values (1) of ``n`` positions: a copy, ``[heads, n, row_bytes]``."""
        if which == 0:
            codes = self._k.transpose(0, 1, 4, 2, 3, 5)
            scales = self._k_scales.transpose(0, 1, 3, 2)
        else:
            codes = self._v.transpose(0, 2, 3, 5, 1, 4)
            scales = self._v_scales.transpose(0, 2, 1)
        heads = len(codes)
        codes = codes.reshape(heads, -1, self.groups * GROUP)[:, :n, : self.head_dim]
        scales = np.ascontiguousarray(scales.reshape(heads, -1, self.groups)[:, :n])
        return np.concatenate([codes, scales.view(np.int8)], axis=2)

    def put(self, which: int, rows: np.ndarray, position: int) -> None:
        """``rows [heads, n, row_bytes]`` become keys (0) or values (1) from ``position`` on."""
        heads, n, _ = rows.shape
        codes = np.zeros((n, heads, self.groups * GROUP), np.int8)
        codes[:, :, : self.head_dim] = rows[:, :, : self.head_dim].transpose(1, 0, 2)
        scales = row_scales(rows, self.head_dim)
        at = position + np.arange(n)
        tile, lane = at // TILE, at % TILE
        if which == 0:
            quads = codes.reshape(n, heads, self.groups, QUADS, 4)
            self._k[:, tile, :, :, lane] = quads
            self._k_scales[:, tile, :, lane] = scales.transpose(1, 0, 2)
        else:
            columns = codes.reshape(n, heads, self.groups, GROUP)
            self._v[:, :, tile, lane // 4, :, lane % 4] = columns
            self._v_scales[:, :, at] = scales.transpose(0, 2, 1)

    def copy_from(self, other: NarrowBlocks, n: int) -> None:
        """The first ``n`` positions of ``other``, and whatever shares their tiles."""
        tiles = -(-n // TILE)
        self._k[:, :tiles] = other._k[:, :tiles]
        self._k_scales[:, :tiles] = other._k_scales[:, :tiles]
        self._v[:, :, :tiles] = other._v[:, :, :tiles]
        self._v_scales[:, :, : tiles * TILE] = other._v_scales[:, :, : tiles * TILE]
