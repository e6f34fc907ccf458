"""Between plain matrices and the packed blocks of a ``.dbb`` (layout: ``docs/format.md``).

Four consecutive columns of a row are a *quad*. A block holds 64 rows by 64 columns: for each of the
16 quads, one byte for each of the 64 rows, so that a kernel keeps rows in its vector lanes. All
shapes may be odd; what a block covers beyond the matrix is zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .tensors import (
    BLOCK_BYTES,
    GROUP,
    INT8_BLOCK_BYTES,
    PLANE_BYTES,
    TILE,
    DenseTensor,
    Int8Tensor,
    LinearTensor,
    tile_grid,
)

QUADS = GROUP // 4
SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)

Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def _pad(matrix: np.ndarray, tiles: int, groups: int) -> np.ndarray:
    rows, cols = matrix.shape
    if (rows, cols) == (tiles * TILE, groups * GROUP):
        return np.ascontiguousarray(matrix)
    padded = np.zeros((tiles * TILE, groups * GROUP), matrix.dtype)
    padded[:rows, :cols] = matrix
    return padded


def pack_planes(b1: Bits, b2: Bits, c1: Codes, c2: Codes) -> Bytes:
    """Pack one pair: planes ``[rows, cols]`` and scale codes ``[rows, groups]``.

    Returns uint8 ``[tiles, groups, 1152]``. Raises ``ValueError`` for shapes that do not fit
    together and for codes outside the format (-128, or a sum outside -127..127).
    """
    rows, cols = b1.shape
    tiles, groups = tile_grid(rows, cols)
    if b2.shape != (rows, cols) or c1.shape != (rows, groups) or c2.shape != (rows, groups):
        raise ValueError(
            f"planes {b1.shape}, {b2.shape} and codes {c1.shape}, {c2.shape} do not fit together"
        )
    total = c1.astype(np.int16) + c2
    if c1.size and (min(c1.min(), c2.min()) < -127 or np.abs(total).max() > 127):
        raise ValueError("scale codes must lie in -127..127, and so must c1 + c2")
    blocks = np.empty((tiles, groups, BLOCK_BYTES), np.uint8)
    for start in range(0, tiles, 16):  # a few tiles at a time stay in the cache
        stop = min(start + 16, tiles)
        part = slice(start * TILE, min(stop * TILE, rows))
        both = b1[part].astype(np.uint8)
        both |= b2[part].astype(np.uint8) << 4
        # One column a byte, its two bits at 0 and 4; shifting by 7k brings column k to bits k, 4+k.
        quads = _pad(both, stop - start, groups).view("<u4")
        quads = quads | quads >> 7 | quads >> 14 | quads >> 21
        lanes = quads.astype(np.uint8).reshape(stop - start, TILE, groups, QUADS)
        planes = blocks[start:stop, :, :PLANE_BYTES].reshape(stop - start, groups, QUADS, TILE)
        planes[:] = lanes.transpose(0, 2, 3, 1)  # splitting the last axis is a view, never a copy
    for offset, codes in ((PLANE_BYTES, c1), (PLANE_BYTES + TILE, c2)):
        lanes = np.zeros((tiles * TILE, groups), np.uint8)
        lanes[:rows] = codes.view(np.uint8)
        blocks[:, :, offset : offset + TILE] = lanes.reshape(tiles, TILE, groups).swapaxes(1, 2)
    return blocks


def _unpack_bits(blocks: Bytes) -> Bytes:
    """``[tiles, groups, 1152]`` -> uint8 ``[tiles * 64, groups, 64]``: bit 0 is b1, bit 4 is b2."""
    tiles, groups, _ = blocks.shape
    lanes = blocks[:, :, :PLANE_BYTES].reshape(tiles, groups, QUADS, TILE).transpose(0, 3, 1, 2)
    quads = lanes.astype("<u4", order="C")
    quads = quads | quads << 7 | quads << 14 | quads << 21
    quads &= 0x11111111
    return quads.view(np.uint8).reshape(tiles * TILE, groups, GROUP)


def _unpack_codes(blocks: Bytes) -> tuple[Codes, Codes]:
    """``[tiles, groups, 1152]`` -> c1, c2 int8 ``[tiles * 64, groups]``."""
    tiles, groups, _ = blocks.shape
    codes = blocks[:, :, PLANE_BYTES:].view(np.int8).reshape(tiles, groups, 2, TILE)
    both = codes.transpose(2, 0, 3, 1).reshape(2, tiles * TILE, groups)
    return both[0], both[1]


def unpack_planes(blocks: Bytes, rows: int, cols: int) -> tuple[Bits, Bits, Codes, Codes]:
    """The inverse of ``pack_planes``: ``b1, b2 [rows, cols]`` and ``c1, c2 [rows, groups]``."""
    bits = _unpack_bits(blocks).reshape(blocks.shape[0] * TILE, -1)[:rows, :cols]
    c1, c2 = _unpack_codes(blocks)
    return (bits & 1).astype(np.bool_), (bits >> 4).astype(np.bool_), c1[:rows], c2[:rows]


def levels(blocks: Bytes, rows: int, cols: int) -> Codes:
    """The integer weights ``c1*b1 + c2*b2`` of one pair, int8 ``[rows, cols]``."""
    bits = _unpack_bits(blocks).view(np.int8)
    c1, c2 = _unpack_codes(blocks)
    out = (bits & 1) * c1[:, :, None]
    out += (bits >> 4) * c2[:, :, None]
    return out.reshape(out.shape[0], -1)[:rows, :cols]


def quantize_int8(weight: Floats) -> tuple[Codes, Floats]:
    """Round ``weight [rows, cols]`` to int8 codes of that shape and scales ``[rows, groups]``.

    The scale of a group of 64 columns is ``max|w| / 127``; a group too small for a normal float32
    scale becomes zero. Raises ``ValueError`` for NaN or infinity.
    """
    weight = np.asarray(weight, np.float32)
    rows, cols = weight.shape
    groups = -(-cols // GROUP)
    padded = np.zeros((rows, groups * GROUP), np.float32)
    padded[:, :cols] = weight
    grouped = padded.reshape(rows, groups, GROUP)
    scales = np.abs(grouped).max(axis=2) / np.float32(127)
    if not np.isfinite(scales).all():
        raise ValueError("weights hold NaN or infinity")
    scales[scales < SMALLEST_NORMAL] = 0
    divisor = np.where(scales > 0, scales, np.float32(np.inf))
    grouped /= divisor[:, :, None]
    codes = np.clip(np.rint(grouped, out=grouped), -127, 127).astype(np.int8)
    return codes.reshape(rows, -1)[:, :cols], scales


def pack_int8(codes: Codes, scales: Floats) -> Int8Tensor:
    """Tile ``codes`` int8 ``[rows, cols]`` and ``scales`` float32 ``[rows, groups]``."""
    rows, cols = codes.shape
    tiles, groups = tile_grid(rows, cols)
    if scales.shape != (rows, groups):
        raise ValueError(f"scales {scales.shape} do not fit codes {codes.shape}")
    if codes.size and codes.min() < -127:
        raise ValueError("codes must lie in -127..127")
    quads = _pad(codes, tiles, groups).view("<u4").reshape(tiles, TILE, groups, QUADS)
    packed = np.ascontiguousarray(quads.transpose(0, 2, 3, 1)).view(np.int8)
    packed = packed.reshape(tiles, groups, INT8_BLOCK_BYTES)
    lanes = np.zeros((tiles * TILE, groups), np.float32)
    lanes[:rows] = scales
    lanes = np.ascontiguousarray(lanes.reshape(tiles, TILE, groups).swapaxes(1, 2))
    return Int8Tensor(packed, lanes, rows, cols)


def unpack_int8(tensor: Int8Tensor) -> tuple[Codes, Floats]:
    """The inverse of ``pack_int8``: codes ``[rows, cols]`` and scales ``[rows, groups]``."""
    tiles, groups, _ = tensor.codes.shape
    quads = tensor.codes.view("<u4").reshape(tiles, groups, QUADS, TILE).transpose(0, 3, 1, 2)
    codes = np.ascontiguousarray(quads).view(np.int8).reshape(tiles * TILE, groups * GROUP)
    scales = tensor.scales.swapaxes(1, 2).reshape(tiles * TILE, groups)
    return codes[: tensor.rows, : tensor.cols], scales[: tensor.rows]


def _scaled(codes: Codes, scales: Floats, cols: int) -> Floats:
    """codes int8 ``[n, groups * 64]`` times scales ``[n, groups]`` -> float32 ``[n, cols]``."""
    n, groups = scales.shape
    out = codes.reshape(n, groups, GROUP).astype(np.float32)
    out *= scales[:, :, None]
    return out.reshape(n, groups * GROUP)[:, :cols]


def dequantize(tensor: LinearTensor) -> Floats:
    """The matrix that ``tensor`` stands for, float32 ``[rows, cols]``.

    Pairs are scaled and added in float32, pair 0 first.
    """
    if isinstance(tensor, DenseTensor):
        return tensor.weight.astype(np.float32)
    out = np.empty((tensor.rows, tensor.cols), np.float32)
    step = max(1, (1 << 16) // max(tensor.cols, 1)) * TILE
    for start in range(0, tensor.rows, step):
        rows = slice(start, min(start + step, tensor.rows))
        tiles = slice(start // TILE, -(-rows.stop // TILE))
        n = rows.stop - start
        if isinstance(tensor, Int8Tensor):
            part = Int8Tensor(tensor.codes[tiles], tensor.scales[tiles], n, tensor.cols)
            out[rows] = _dequantize_int8(part)
            continue
        out[rows] = 0
        for pair in range(tensor.pairs):
            level = levels(tensor.blocks[pair, tiles], n, tensor.cols)
            out[rows] += tensor.row_scale[pair, rows, None] * level.astype(np.float32)
    return out


def _dequantize_int8(tensor: Int8Tensor) -> Floats:
    groups = tensor.codes.shape[1]
    full = Int8Tensor(tensor.codes, tensor.scales, tensor.rows, groups * GROUP)
    codes, scales = unpack_int8(full)
    return _scaled(np.ascontiguousarray(codes), scales, tensor.cols)


def gather_rows(tensor: LinearTensor, ids: npt.NDArray[np.integer]) -> Floats:
    """Rows ``ids`` of ``dequantize(tensor)``, float32 ``[n, cols]``, without unpacking the rest.

    Raises ``IndexError`` for an id outside ``0 .. rows - 1``.
    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= tensor.rows):
        raise IndexError(f"row ids must lie in 0..{tensor.rows - 1}")
    if isinstance(tensor, DenseTensor):
        return tensor.weight[ids].astype(np.float32)
    tile, lane = ids // TILE, ids % TILE
    n = len(ids)
    if isinstance(tensor, Int8Tensor):
        tiles, groups, _ = tensor.codes.shape
        quads = tensor.codes.view("<u4").reshape(tiles, groups, QUADS, TILE)
        codes = np.ascontiguousarray(quads[tile, :, :, lane]).view(np.int8)
        return _scaled(codes.reshape(n, groups * GROUP), tensor.scales[tile, :, lane], tensor.cols)
    _, tiles, groups, _ = tensor.blocks.shape
    out = np.zeros((n, tensor.cols), np.float32)
    for pair in range(tensor.pairs):
        blocks = tensor.blocks[pair]
        planes = blocks[:, :, :PLANE_BYTES].reshape(tiles, groups, QUADS, TILE)
        quads = planes[tile, :, :, lane].astype("<u4")
        quads = (quads | quads << 7 | quads << 14 | quads << 21) & 0x11111111
        bits = quads.view(np.int8).reshape(n, groups, GROUP)
        codes = blocks[:, :, PLANE_BYTES:].view(np.int8)
        level = (bits & 1) * codes[tile, :, lane][:, :, None]
        level += (bits >> 4) * codes[tile, :, TILE + lane][:, :, None]
        scale = tensor.row_scale[pair, ids, None]
        out += scale * level.reshape(n, groups * GROUP)[:, : tensor.cols].astype(np.float32)
    return out
