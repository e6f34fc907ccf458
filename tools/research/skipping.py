"""Products that skip zeros, as the paper counts them: one addition for every bit that is set.

Words of 64 bits are walked from set bit to set bit. It is the best that skipping can do with a
group in one word: what is zero costs nothing, and no list of places is read.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgedb.format.packing import unpack_half, unpack_planes
from edgedb.format.tensors import GROUP, PairTensor

# Where the lowest set bit stands: a product with this number has another top byte for each place.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_PLACES = np.zeros(64, np.int64)
for _i in range(64):
    _PLACES[((int(_DE_BRUIJN) << _i) & (2**64 - 1)) >> 58] = _i


def words(tensor: PairTensor) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """Planes ``[pairs, rows, groups, 2]``, a group of 64 bits a word, and their scales' codes; a
    half pair is one without bits in its second plane."""
    planes, codes = [], []
    size = (tensor.rows, tensor.cols)
    parts = [unpack_planes(blocks, *size) for blocks in tensor.blocks]
    if tensor.half is not None:
        b, c = unpack_half(tensor.half, *size)
        parts.append((b, np.zeros_like(b), c, np.zeros_like(c)))
    for b1, b2, c1, c2 in parts:
        bits = np.stack((b1, b2), axis=1)
        padded = np.pad(bits, ((0, 0), (0, 0), (0, -tensor.cols % GROUP)))
        packed = np.packbits(padded, axis=2, bitorder="little").view(np.uint64)
        planes.append(packed.transpose(0, 2, 1))
        codes.append(np.stack((c1, c2), axis=-1))
    return np.ascontiguousarray(planes), np.ascontiguousarray(codes)


@njit(cache=True, nogil=True)
def multiply(planes, codes, row_scale, q, sx, y):  # type: ignore[no-untyped-def]
    """``y [rows]`` of 8-bit activations ``q [groups * 64]`` of scales ``sx [groups]``; planes and
    codes as ``words`` gives them, row_scale ``[pairs, rows]``."""
    pairs, rows, groups, _ = planes.shape
    for row in range(rows):
        total = np.float32(0)
        for pair in range(pairs):
            acc = np.float32(0)
            for group in range(groups):
                weighed = 0
                for plane in range(2):
                    word, found = planes[pair, row, group, plane], 0
                    while word:
                        low = word & (~word + np.uint64(1))
                        found += q[group * 64 + _PLACES[(low * _DE_BRUIJN) >> np.uint64(58)]]
                        word ^= low
                    weighed += codes[pair, row, group, plane] * found
                acc += sx[group] * np.float32(weighed)
            total += row_scale[pair, row] * acc
        y[row] = total
