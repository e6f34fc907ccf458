"""The numerics of ``docs/format.md`` in plain Python, exact where floating point rounds.

Integers are Python integers and a fused multiply-add is a fraction rounded once, so nothing here
depends on a CPU or on numpy's order of summation. Blocks are read byte by byte from the layout's
description, not through ``edgedb.format.packing``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

GROUP = TILE = 64
LANES = 16
SMALLEST_NORMAL = 2.0**-126

f32 = np.float32


def round_f32(value: Fraction) -> float:
    """The float32 nearest to a fraction that is not zero, ties to even."""
    magnitude = abs(value)
    exponent = math.frexp(float(magnitude))[1] - 24 if magnitude > Fraction(2) ** -140 else -149
    exponent = max(exponent, -149)
    while magnitude / Fraction(2) ** exponent >= 1 << 24:
        exponent += 1
    while exponent > -149 and magnitude / Fraction(2) ** exponent < 1 << 23:
        exponent -= 1
    mantissa = round(magnitude / Fraction(2) ** exponent)  # Python rounds half to even
    result = math.ldexp(mantissa, exponent)
    if result >= 2.0**128:
        result = math.inf
    return math.copysign(result, value)


def fma(a: float, b: float, c: float) -> float:
    """``a * b + c`` of float32 values, rounded once."""
    a, b, c = float(a), float(b), float(c)
    product = a * b  # exact: 48 bits, and far from double's limits
    if not math.isfinite(product + c):
        return product + c
    exact = Fraction(product) + Fraction(c)
    return (
        product + c if exact == 0 else round_f32(exact)
    )  # a zero keeps the sign rules of addition


def mul(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(f32(a) * f32(b))


def add(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(f32(a) + f32(b))


def quantize(x: Sequence[float]) -> tuple[list[list[int]], list[float]]:
    """One token: ``q[group][64]`` and ``sx[group]``."""
    x = [float(v) for v in x] + [0.0] * (-len(x) % GROUP)
    q, sx = [], []
    for start in range(0, len(x), GROUP):
        group = x[start : start + GROUP]
        if not all(map(math.isfinite, group)):
            q.append([0] * GROUP)
            sx.append(math.nan)
            continue
        scale = float(f32(max(map(abs, group))) / f32(127))
        if scale < SMALLEST_NORMAL:
            q.append([0] * GROUP)
            sx.append(0.0)
            continue
        ratios = [float(f32(v) / f32(scale)) for v in group]
        q.append([max(-127, min(127, round(ratio))) for ratio in ratios])
        sx.append(scale)
    return q, sx


def pair_level(blocks: np.ndarray, row: int, column: int) -> int:
    """``c1*b1 + c2*b2`` from blocks ``[tiles, groups, 1152]`` of a pair, or ``c1*b1`` from those of
    half a pair, ``[tiles, groups, 576]``."""
    block, lane, quad = blocks[row // TILE, column // GROUP], row % TILE, column % GROUP // 4
    if len(block) == 576:
        b1 = int(block[TILE * (quad // 2) + lane]) >> column % 8 & 1
        return int(block[512:].view(np.int8)[lane]) * b1
    byte = int(block[TILE * quad + lane])
    b1, b2 = byte >> column % 4 & 1, byte >> 4 + column % 4 & 1
    c1, c2 = block[1024:1088].view(np.int8)[lane], block[1088:1152].view(np.int8)[lane]
    return int(c1) * b1 + int(c2) * b2


def int8_code(codes: np.ndarray, row: int, column: int) -> int:
    """The code of an element in codes ``[tiles, groups, 4096]``."""
    quad = column % GROUP // 4
    index = 4 * (TILE * quad + row % TILE) + column % 4
    return int(codes[row // TILE, column // GROUP, index])


def pairs_row(
    terms: Sequence[np.ndarray], row_scale: np.ndarray, row: int, cols: int, x: Sequence[float]
) -> float:
    """``y[row]`` for blocks as ``pair_level`` takes them, in order, row_scale ``[terms, rows]``."""
    q, sx = quantize(x)
    y = 0.0
    for i, (blocks, scale) in enumerate(zip(terms, row_scale[:, row], strict=True)):
        acc = 0.0
        for g, scale_x in enumerate(sx):
            columns = range(g * GROUP, min((g + 1) * GROUP, cols))
            total = sum(pair_level(blocks, row, c) * q[g][c % GROUP] for c in columns)
            acc = fma(scale_x, total, acc)
        y = mul(scale, acc) if i == 0 else add(y, mul(scale, acc))
    return y


def int8_row(
    codes: np.ndarray, scales: np.ndarray, row: int, cols: int, x: Sequence[float]
) -> float:
    """``y[row]`` for codes ``[tiles, groups, 4096]``, scales ``[tiles, groups, 64]``."""
    q, sx = quantize(x)
    acc = 0.0
    for g, scale_x in enumerate(sx):
        columns = range(g * GROUP, min((g + 1) * GROUP, cols))
        total = sum(int8_code(codes, row, c) * q[g][c % GROUP] for c in columns)
        acc = fma(mul(scale_x, scales[row // TILE, g, row % TILE]), total, acc)
    return acc


def tree(lanes: Sequence[float]) -> float:
    """Sum of 16 lanes: l += l+8, then += l+4, += l+2, += l+1."""
    values = list(lanes)
    while len(values) > 1:
        half = len(values) // 2
        values = [add(values[i], values[i + half]) for i in range(half)]
    return values[0]


def dot(w: Sequence[float], x: Sequence[float]) -> float:
    """Dense dot product: lane l sums columns l, l+16, ... and the tree joins the lanes."""
    padding = [0.0] * (-len(x) % LANES)
    lanes = [0.0] * LANES
    for i, (a, b) in enumerate(zip([*w, *padding], [*x, *padding], strict=True)):
        lanes[i % LANES] = fma(a, b, lanes[i % LANES])
    return tree(lanes)


def layernorm(
    x: Sequence[float], weight: Sequence[float], shift: Sequence[float], eps: float
) -> list[float]:
    """``(x - mean) / sqrt(variance + eps) * weight + shift`` in the order of the C library."""
    mean = f32(dot([1.0] * len(x), x)) / f32(len(x))
    centered = [f32(v) - mean for v in x]
    inverse = f32(1) / np.sqrt(f32(dot(centered, centered)) / f32(len(x)) + f32(eps))
    return [fma(mul(v, inverse), w, b) for v, w, b in zip(centered, weight, shift, strict=True)]


def rmsnorm(x: Sequence[float], weight: Sequence[float], eps: float) -> list[float]:
    """``x / sqrt(mean(x^2) + eps) * weight`` in the order of the C library."""
    mean = f32(dot(x, x)) / f32(len(x))
    inverse = f32(1) / np.sqrt(mean + f32(eps))
    return [mul(mul(v, inverse), w) for v, w in zip(x, weight, strict=True)]
