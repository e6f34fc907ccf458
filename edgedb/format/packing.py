"""Between plain matrices and the packed blocks of a ``.dbb`` (layout: ``docs/format.md``).

Four consecutive columns of a row are a *quad*. A block holds 64 rows by 64 columns: for each of the
16 quads, one byte for each of the 64 rows, so that a kernel keeps rows in its vector lanes. That
byte has a nibble of each plane of a pair; half a pair has one plane, and two quads in a byte. All
shapes may be odd; what a block covers beyond the matrix is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .tensors import (
    BLOCK_BYTES,
    GROUP,
    HALF_BYTES,
    HALF_PLANE_BYTES,
    INT8_BLOCK_BYTES,
    PLANE_BYTES,
    TILE,
    DenseTensor,
    Experts,
    Int8Tensor,
    LinearTensor,
    Weight,
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
    if b2.shape != b1.shape:
        raise ValueError(f"planes {b1.shape}, {b2.shape} do not fit together")
    _check_codes(b1, c1, c2)
    tiles, groups = tile_grid(*b1.shape)
    blocks = np.empty((tiles, groups, BLOCK_BYTES), np.uint8)
    planes = blocks[:, :, :PLANE_BYTES].reshape(tiles, groups, QUADS, TILE)
    for part, lanes in _pack_bits(b1, b2):
        planes[part] = lanes
    _pack_codes(blocks[:, :, PLANE_BYTES:], c1, c2)
    return blocks


def pack_half(b: Bits, c: Codes) -> Bytes:
    """Pack half a pair: one plane ``[rows, cols]`` and its scale codes ``[rows, groups]``.

    Returns uint8 ``[tiles, groups, 576]``. Raises ``ValueError`` as ``pack_planes``.
    """
    _check_codes(b, c)
    tiles, groups = tile_grid(*b.shape)
    half = np.empty((tiles, groups, HALF_BYTES), np.uint8)
    planes = half[:, :, :HALF_PLANE_BYTES].reshape(tiles, groups, QUADS // 2, TILE)
    for part, lanes in _pack_bits(b):
        planes[part] = lanes[:, :, 0::2] | lanes[:, :, 1::2] << 4
    _pack_codes(half[:, :, HALF_PLANE_BYTES:], c)
    return half


def _check_codes(b: Bits, *codes: Codes) -> None:
    """Raise ``ValueError`` unless ``codes`` scale planes of the shape of ``b``."""
    rows, groups = len(b), tile_grid(*b.shape)[1]
    for c in codes:
        if c.shape != (rows, groups):
            raise ValueError(f"planes {b.shape} and codes {c.shape} do not fit together")
        if c.size and c.min() < -127:
            raise ValueError("scale codes must lie in -127..127")
    if len(codes) > 1 and (np.abs(np.sum(codes, axis=0, dtype=np.int16)) > 127).any():
        raise ValueError("scale codes must lie in -127..127, and so must c1 + c2")


def _pack_bits(b1: Bits, b2: Bits | None = None) -> Iterator[tuple[slice, Bytes]]:
    """Some tiles at a time, which stay in the cache: which, and uint8 ``[n, groups, 16, 64]``, the
    nibbles of ``b1`` and ``b2`` in every quad for every lane."""
    rows, cols = b1.shape
    tiles, groups = tile_grid(rows, cols)
    for start in range(0, tiles, 16):
        stop = min(start + 16, tiles)
        part = slice(start * TILE, min(stop * TILE, rows))
        both = b1[part].astype(np.uint8)
        if b2 is not None:
            both |= b2[part].astype(np.uint8) << 4
        # One column a byte, its two bits at 0 and 4; shifting by 7k brings column k to bits k, 4+k.
        quads = _pad(both, stop - start, groups).view("<u4")
        quads = quads | quads >> 7 | quads >> 14 | quads >> 21
        lanes = quads.astype(np.uint8).reshape(stop - start, TILE, groups, QUADS)
        yield slice(start, stop), lanes.transpose(0, 2, 3, 1)


def _pack_codes(out: Bytes, *codes: Codes) -> None:
    """Write ``codes [rows, groups]`` one after another into ``out [tiles, groups, 64 each]``."""
    tiles, groups, _ = out.shape
    for i, c in enumerate(codes):
        lanes = np.zeros((tiles * TILE, groups), np.uint8)
        lanes[: len(c)] = c.view(np.uint8)
        out[:, :, i * TILE : (i + 1) * TILE] = lanes.reshape(tiles, TILE, groups).swapaxes(1, 2)


def split_blocks(blocks: Bytes) -> tuple[Bytes, Codes]:
    """Views of blocks of a pair ``[tiles, groups, 1152]`` or of half a pair ``[..., 576]``.

    Returns the planes, uint8 ``[tiles, groups, 16 or 8, 64]``, one byte a lane for each quad or, in
    a half, for each two; and the codes, int8 ``[tiles, groups, 2 or 1, 64]``.
    """
    tiles, groups, size = blocks.shape
    n_bytes = PLANE_BYTES if size == BLOCK_BYTES else HALF_PLANE_BYTES
    planes = blocks[:, :, :n_bytes].reshape(tiles, groups, -1, TILE)
    return planes, blocks[:, :, n_bytes:].view(np.int8).reshape(tiles, groups, -1, TILE)


def _weigh(planes: Bytes, codes: Codes) -> Codes:
    """``planes [n, groups, 16 or 8]``, bytes of one lane as ``split_blocks`` has them, times
    ``codes [n, groups, 2 or 1]``: int8 ``[n, groups * 64]``."""
    bits = _spread(planes).view(np.int8)
    out = (bits & 1) * codes[:, :, :1]
    if codes.shape[2] > 1:
        out += (bits >> 4) * codes[:, :, 1:]
    return out.reshape(len(out), -1)


def _spread(planes: Bytes) -> Bytes:
    """``planes [n, groups, 16 or 8]`` of a lane -> ``[n, groups, 64]``, a byte for each column: its
    bit of b1 is bit 0, that of b2 bit 4."""
    if planes.shape[2] == QUADS // 2:
        planes = np.stack([planes & 15, planes >> 4], axis=3).reshape(*planes.shape[:2], QUADS)
    wide = planes.astype("<u4", order="C")
    wide = wide | wide << 7 | wide << 14 | wide << 21
    wide &= 0x11111111
    return wide.view(np.uint8)


def _by_row(blocks: Bytes) -> tuple[Bytes, Codes]:
    """``split_blocks`` as planes ``[rows, groups, 16 or 8]``, codes ``[rows, groups, 2 or 1]``."""
    planes, codes = (part.transpose(0, 3, 1, 2) for part in split_blocks(blocks))
    n, groups = len(planes) * TILE, planes.shape[2]
    return planes.reshape(n, groups, -1), codes.reshape(n, groups, -1)


def unpack_planes(blocks: Bytes, rows: int, cols: int) -> tuple[Bits, Bits, Codes, Codes]:
    """The inverse of ``pack_planes``: ``b1, b2 [rows, cols]`` and ``c1, c2 [rows, groups]``."""
    planes, codes = _by_row(blocks)
    bits = _spread(planes).reshape(len(planes), -1)[:rows, :cols]
    c1, c2 = codes[:rows, :, 0], codes[:rows, :, 1]
    return (bits & 1).astype(np.bool_), (bits >> 4).astype(np.bool_), c1, c2


def unpack_half(half: Bytes, rows: int, cols: int) -> tuple[Bits, Codes]:
    """The inverse of ``pack_half``: ``b [rows, cols]`` and ``c [rows, groups]``."""
    planes, codes = _by_row(half)
    bits = _spread(planes).reshape(len(planes), -1)[:rows, :cols]
    return bits.astype(np.bool_), codes[:rows, :, 0]


def levels(blocks: Bytes, rows: int, cols: int) -> Codes:
    """The integer weights, int8 ``[rows, cols]``: ``c1*b1 + c2*b2``, or ``c1*b1`` of a half."""
    return _weigh(*_by_row(blocks))[:rows, :cols]


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


def dequantize(tensor: Weight) -> Floats:
    """The matrix that ``tensor`` stands for, float32 ``[rows, cols]``; of experts all of theirs,
    ``[experts, rows, cols]``.

    Pairs are scaled and added in float32, pair 0 first.
    """
    if isinstance(tensor, Experts):
        return np.stack([dequantize(tensor[i]) for i in range(len(tensor))])
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
        for blocks, scale in tensor.terms():
            level = levels(blocks[tiles], n, tensor.cols)
            out[rows] += scale[rows, None] * level.astype(np.float32)
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
    out = np.zeros((n, tensor.cols), np.float32)
    for blocks, scale in tensor.terms():
        planes, codes = split_blocks(blocks)
        level = _weigh(planes[tile, :, :, lane], codes[tile, :, :, lane])
        out += scale[ids, None] * level[:, : tensor.cols].astype(np.float32)
    return out
