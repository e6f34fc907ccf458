# mypy: disable-error-code="call-arg, no-untyped-def, var-annotated"
"""Compiled matrix products: one token at a time (decode) and many (prompt).

The order of float32 operations is that of ``docs/format.md`` and every integer is exact, so results
have the bits of the native kernels, at every number of threads and tokens. Functions named
``*_tiles`` or ``*_rows`` work on a range and run on one thread; ``*_parallel`` cut the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .jit_narrow import (
    add16,
    add_products,
    fma,
    level_f32,
    scaled_sum,
    scaled_sums,
    subset_sum_b1,
    subset_sum_b2,
    to_f32,
)


def jit(parallel: bool = False) -> Any:
    """Compile at the first call, and cache machine code beside the source or in the user's cache.

    Types are left to the first call: explicit ones would load every kernel at import, also those
    that a model of one kind never calls. Division by zero gives infinity, as in numpy.
    """

    def decorate(function: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "parallel": parallel}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write: compile in every process
            return njit(cache=False, **options)(function)

    return decorate


@jit()
def quantize(x, n, cols, q, qf, sx):
    """x ``[n, cols]`` -> q int16 and qf float32 ``[n, groups * 64]``, sx ``[n, groups]``."""
    groups = sx.shape[1]
    smallest = np.float32(1.17549435e-38)
    largest = np.float32(3.4028234663852886e38)
    for t in range(n):
        for g in range(groups):
            stop = min(cols, 64 * g + 64)
            peak = np.float32(0)
            finite = True
            for c in range(64 * g, stop):
                size = abs(x[t, c])
                finite &= size <= largest
                peak = max(peak, size)
            scale = peak / np.float32(127)
            usable = finite and scale >= smallest
            sx[t, g] = (scale if usable else np.float32(0)) if finite else np.float32(np.nan)
            for c in range(64 * g, 64 * g + 64):
                value = np.float32(0)
                if usable and c < stop:
                    value = np.rint(x[t, c] / scale)
                    value = min(max(value, np.float32(-127)), np.float32(127))
                qf[t, c] = value
                q[t, c] = np.int16(value)


@jit()
def pairs_tiles(first, last, blocks, halves, row_scale, q, sx, out, add):
    """Tiles ``first .. last - 1`` of one token. blocks uint8 ``[P, T, G, 1152]``; halves uint8
    ``[1, T, G, 576]``, or ``[0, T, G, 576]`` where there is none.

    Per quad of columns and plane: four tests of a bit and four masked 16-bit additions, 64 wide.
    """
    pairs = blocks.shape[0]
    rows = out.size
    s1, s2 = np.empty(64, np.int16), np.empty(64, np.int16)
    acc, y = np.empty(64, np.float32), np.empty(64, np.float32)
    for tile in range(first, last):
        used = min(64, rows - 64 * tile)
        for p in range(row_scale.shape[0]):
            acc[:] = 0
            if p < pairs:
                add_pair(blocks[p, tile], q, sx, s1, s2, acc)
            else:
                add_half(halves[0, tile], q, sx, s1, acc)
            scales = row_scale[p, 64 * tile : 64 * tile + used]
            if p == 0:
                for lane in range(used):
                    y[lane] = scales[lane] * acc[lane]
            else:
                for lane in range(used):
                    y[lane] = y[lane] + scales[lane] * acc[lane]
        _store(y, out[64 * tile : 64 * tile + used], add)


@jit()
def add_pair(blocks, q, sx, s1, s2, acc):
    """``acc += sx * (c1*S1 + c2*S2)`` for a tile of a pair, blocks ``[G, 1152]``."""
    for g in range(blocks.shape[0]):
        block, codes = blocks[g], blocks[g].view(np.int8)
        s1[:] = 0
        s2[:] = 0
        for quad in range(0, 16, 2):  # two at a time halve the traffic of s1 and s2
            w0 = block[64 * quad : 64 * quad + 64]
            w1 = block[64 * quad + 64 : 64 * quad + 128]
            at = 64 * g + 4 * quad
            q0, q1, q2, q3 = q[at], q[at + 1], q[at + 2], q[at + 3]
            r0, r1, r2, r3 = q[at + 4], q[at + 5], q[at + 6], q[at + 7]
            for lane in range(64):
                v, w = w0[lane], w1[lane]
                a = add16(s1[lane], subset_sum_b1(v, q0, q1, q2, q3))
                b = add16(s2[lane], subset_sum_b2(v, q0, q1, q2, q3))
                s1[lane] = add16(a, subset_sum_b1(w, r0, r1, r2, r3))
                s2[lane] = add16(b, subset_sum_b2(w, r0, r1, r2, r3))
        c1, c2 = codes[1024:1088], codes[1088:1152]
        scale = sx[g]
        for lane in range(64):
            dot = scaled_sums(c1[lane], s1[lane], c2[lane], s2[lane])
            acc[lane] = fma(scale, dot, acc[lane])


@jit()
def add_half(blocks, q, sx, s1, acc):
    """The same of half a pair: blocks ``[G, 576]``, two quads in a byte."""
    for g in range(blocks.shape[0]):
        block, codes = blocks[g], blocks[g].view(np.int8)
        s1[:] = 0
        for two in range(0, 8, 2):  # as many at a time as in a pair
            w0 = block[64 * two : 64 * two + 64]
            w1 = block[64 * two + 64 : 64 * two + 128]
            at = 64 * g + 8 * two
            q0, q1, q2, q3 = q[at], q[at + 1], q[at + 2], q[at + 3]
            q4, q5, q6, q7 = q[at + 4], q[at + 5], q[at + 6], q[at + 7]
            r0, r1, r2, r3 = q[at + 8], q[at + 9], q[at + 10], q[at + 11]
            r4, r5, r6, r7 = q[at + 12], q[at + 13], q[at + 14], q[at + 15]
            for lane in range(64):
                v, w = w0[lane], w1[lane]
                a = add16(subset_sum_b1(v, q0, q1, q2, q3), subset_sum_b2(v, q4, q5, q6, q7))
                b = add16(subset_sum_b1(w, r0, r1, r2, r3), subset_sum_b2(w, r4, r5, r6, r7))
                s1[lane] = add16(s1[lane], add16(a, b))
        c1 = codes[512:576]
        scale = sx[g]
        for lane in range(64):
            acc[lane] = fma(scale, scaled_sum(c1[lane], s1[lane]), acc[lane])


@jit()
def _store(y, out, add):
    if add:
        for lane in range(out.size):
            out[lane] = out[lane] + y[lane]
    else:
        for lane in range(out.size):
            out[lane] = y[lane]


@jit()
def int8_tiles(first, last, codes, scales, q, sx, out, add):
    """Tiles of one token. codes int8 ``[T, G, 4096]``, scales ``[T, G, 64]``."""
    _tiles, groups, _ = codes.shape
    rows = out.size
    sums = np.empty(256, np.int32)  # four partial sums for each row
    q4 = np.empty((16 * groups, 64), np.int16)  # a quad's activations over and over
    for quad in range(16 * groups):
        for j in range(64):
            q4[quad, j] = q[4 * quad + j % 4]
    acc = np.empty(64, np.float32)
    for tile in range(first, last):
        acc[:] = 0
        for g in range(groups):
            sums[:] = 0
            for quad in range(0, 16, 2):
                q0, q1 = q4[16 * g + quad], q4[16 * g + quad + 1]
                for part in range(0, 256, 64):
                    at = 256 * quad + part
                    w0, w1 = codes[tile, g, at : at + 64], codes[tile, g, at + 256 : at + 320]
                    total = sums[part : part + 64]
                    for j in range(64):
                        total[j] = add_products(total[j], w0[j], q0[j], w1[j], q1[j])
            for lane in range(64):
                dot = sums[4 * lane] + sums[4 * lane + 1] + sums[4 * lane + 2] + sums[4 * lane + 3]
                scale = sx[g] * scales[tile, g, lane]
                acc[lane] = fma(scale, np.float32(np.int32(dot)), acc[lane])
        _store(acc, out[64 * tile : min(rows, 64 * tile + 64)], add)


@jit()
def expand_pair(block, weights):
    """One block of 1152 bytes -> its integer weights as float32 ``[64 columns, 64 rows]``."""
    codes = block.view(np.int8)
    c1, c2 = codes[1024:1088], codes[1088:1152]
    for quad in range(16):
        source = block[64 * quad : 64 * quad + 64]
        for k in range(4):
            target = weights[4 * quad + k]
            bit = np.uint8(1 << k)
            for lane in range(64):
                target[lane] = level_f32(source[lane], bit, c1[lane], c2[lane])


@jit()
def expand_half(block, none, weights):
    """One block of half a pair, 576 bytes -> the same. none: ``[64]`` zeros, the code of the quad
    that a mask is not of."""
    c1 = block.view(np.int8)[512:576]
    for two in range(8):
        source = block[64 * two : 64 * two + 64]
        for k in range(4):
            bit = np.uint8(1 << k)
            target = weights[8 * two + k]
            for lane in range(64):
                target[lane] = level_f32(source[lane], bit, c1[lane], none[lane])
            target = weights[8 * two + 4 + k]
            for lane in range(64):
                target[lane] = level_f32(source[lane], bit, none[lane], c1[lane])


@jit()
def expand_int8(block, weights):
    """One block of 4096 codes -> float32 ``[64 columns, 64 rows]``."""
    for quad in range(16):
        for lane in range(64):
            for k in range(4):
                weights[4 * quad + k, lane] = np.float32(block[256 * quad + 4 * lane + k])


@jit()
def add_groups(weights, scales, qf, sx, acc, n, g):
    """``acc[t] = fma(sx[t, g] * scales, dot, acc[t])``; weights ``[64, 64]``, scales ``[64]``.

    The dots are sums of integers below 2^24, exact in float32 in any order.
    """
    dot = np.empty(64, np.float32)
    for t in range(n):
        dot[:] = 0
        x = qf[t, 64 * g : 64 * g + 64]
        for k in range(0, 64, 8):  # eight columns for one load and store of the sums
            w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
            w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
            x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
            x4, x5, x6, x7 = x[k + 4], x[k + 5], x[k + 6], x[k + 7]
            for lane in range(64):
                a = fma(w0[lane], x0, fma(w1[lane], x1, fma(w2[lane], x2, dot[lane])))
                b = fma(w3[lane], x3, fma(w4[lane], x4, fma(w5[lane], x5, w6[lane] * x6)))
                dot[lane] = a + fma(w7[lane], x7, b)
        sums, scale = acc[t], sx[t, g]
        for lane in range(64):
            sums[lane] = fma(scale * scales[lane], dot[lane], sums[lane])


@jit()
def pairs_many_tiles(first, last, blocks, halves, row_scale, qf, sx, out, n, add):
    """Tiles of n tokens: each block is expanded once for all of them. out ``[>= n, rows]``."""
    pairs, _tiles, groups, _ = blocks.shape
    none = np.zeros(64, np.int8)
    rows = out.shape[1]
    weights = np.empty((64, 64), np.float32)
    acc, y = np.empty((n, 64), np.float32), np.empty((n, 64), np.float32)
    ones = np.ones(64, np.float32)
    for tile in range(first, last):
        used = min(64, rows - 64 * tile)
        for p in range(row_scale.shape[0]):
            acc[:] = 0
            for g in range(groups):
                if p < pairs:
                    expand_pair(blocks[p, tile, g], weights)
                else:
                    expand_half(halves[0, tile, g], none, weights)
                add_groups(weights, ones, qf, sx, acc, n, g)
            scales = row_scale[p, 64 * tile : 64 * tile + used]
            for t in range(n):
                for lane in range(used):
                    term = scales[lane] * acc[t, lane]
                    y[t, lane] = term if p == 0 else y[t, lane] + term
        for t in range(n):
            _store(y[t], out[t, 64 * tile : 64 * tile + used], add)


@jit()
def int8_many_tiles(first, last, codes, scales, qf, sx, out, n, add):
    """The same for int8 weights."""
    _tiles, groups, _ = codes.shape
    rows = out.shape[1]
    weights = np.empty((64, 64), np.float32)
    acc = np.empty((n, 64), np.float32)
    for tile in range(first, last):
        acc[:] = 0
        for g in range(groups):
            expand_int8(codes[tile, g], weights)
            add_groups(weights, scales[tile, g], qf, sx, acc, n, g)
        for t in range(n):
            _store(acc[t], out[t, 64 * tile : min(rows, 64 * tile + 64)], add)


@jit()
def dense_rows(first, last, weight, x, out, n, add):
    """Rows of float32 weights, or of float16 as uint16 bits; 16 sums a row, folded in a tree."""
    cols = weight.shape[1]
    whole = cols // 16 * 16
    wide = np.empty((8, cols), np.float32)
    lanes = np.empty((8, 16), np.float32)
    for start in range(first, last, 8):  # eight rows hide the latency of each other's sums
        count = min(8, last - start)
        for r in range(count):
            source, target = weight[start + r], wide[r]
            for c in range(cols):
                target[c] = to_f32(source[c])
        for t in range(n):
            lanes[:] = 0
            for c in range(0, whole - 63, 64):  # four steps for one load and store of the sums
                part = x[t, c : c + 64]
                for r in range(count):
                    w, total = wide[r, c : c + 64], lanes[r]
                    for j in range(16):
                        a = fma(w[16 + j], part[16 + j], fma(w[j], part[j], total[j]))
                        b = fma(w[32 + j], part[32 + j], a)
                        total[j] = fma(w[48 + j], part[48 + j], b)
            for r in range(count):
                total = lanes[r]
                for c in range(whole // 64 * 64, whole, 16):
                    for j in range(16):
                        total[j] = fma(wide[r, c + j], x[t, c + j], total[j])
                for c in range(whole, cols):
                    total[c - whole] = fma(wide[r, c], x[t, c], total[c - whole])
                for half in (8, 4, 2, 1):
                    for j in range(half):
                        total[j] = total[j] + total[j + half]
                row = start + r
                out[t, row] = out[t, row] + total[0] if add else total[0]


@jit(parallel=True)
def pairs_parallel(parts, tiles, blocks, halves, row_scale, q, sx, out, add):
    for i in prange(parts):
        pairs_tiles(
            tiles * i // parts, tiles * (i + 1) // parts, blocks, halves, row_scale, q, sx, out, add
        )


@jit(parallel=True)
def int8_parallel(parts, tiles, codes, scales, q, sx, out, add):
    for i in prange(parts):
        int8_tiles(tiles * i // parts, tiles * (i + 1) // parts, codes, scales, q, sx, out, add)


@jit(parallel=True)
def pairs_many_parallel(parts, tiles, blocks, halves, row_scale, qf, sx, out, n, add):
    for i in prange(parts):
        pairs_many_tiles(
            tiles * i // parts,
            tiles * (i + 1) // parts,
            blocks,
            halves,
            row_scale,
            qf,
            sx,
            out,
            n,
            add,
        )


@jit(parallel=True)
def int8_many_parallel(parts, tiles, codes, scales, qf, sx, out, n, add):
    for i in prange(parts):
        int8_many_tiles(
            tiles * i // parts, tiles * (i + 1) // parts, codes, scales, qf, sx, out, n, add
        )


@jit(parallel=True)
def dense_parallel(parts, rows, weight, x, out, n, add):
    for i in prange(parts):
        dense_rows(rows * i // parts, rows * (i + 1) // parts, weight, x, out, n, add)
