"""Compiled inner loops of the FDB fit: one group of 64 columns of one row at a time.

Names. A group has ``2 * pairs`` *planes*; plane ``2p`` is b1 of pair p and plane ``2p + 1`` its b2. The
*code* of a weight is the integer whose bit j is its bit in plane j, so a group has ``4 ** pairs`` levels and
``levels[code]`` is the weight's value. ``a[j]`` is the float scale of plane j, ``c[j]`` its int8 code, and
``a[j] = row_scale[j // 2] * c[j]``.

Everything here releases the GIL; callers split rows between threads, so results do not depend on
their number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GROUP = 64
MAX_CODE = 127

# Without reassociation LLVM may not vectorize a sum. NaN and infinity are refused before.
_jit = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp"})

# Multiples of the range-filling step that the uniform start tries, coarse grids clip more.
_FACTORS = (
    np.linspace(0.35, 1.0, 10).astype(np.float32),
    np.linspace(0.55, 1.0, 8).astype(np.float32),
    np.linspace(0.75, 1.0, 6).astype(np.float32),
    np.linspace(0.85, 1.0, 4).astype(np.float32),
)


def scale_factors(pairs: int) -> np.ndarray:
    """Steps to try for the uniform start of ``pairs`` pairs, relative to the one without clipping."""
    return _FACTORS[pairs - 1]


@_jit
def set_levels(a, levels):
    """levels[code] = sum of a[j] over the bits j of code."""
    levels[0] = 0
    n = 1
    for j in range(a.size):
        for i in range(n):
            levels[n + i] = levels[i] + a[j]
        n *= 2


@_jit
def nearest(w, levels, codes, best):
    """codes[k] = the level nearest to w[k]; best is scratch. One pass per level, columns in lanes."""
    for k in range(GROUP):
        best[k] = abs(w[k])
        codes[k] = 0
    for i in range(1, levels.size):
        level = levels[i]
        for k in range(GROUP):
            d = abs(w[k] - level)
            closer = d < best[k]
            best[k] = d if closer else best[k]
            codes[k] = i if closer else codes[k]


@_jit
def weighted_error(w, h, levels, codes):
    total = np.float32(0)
    for k in range(GROUP):
        d = w[k] - levels[codes[k]]
        total += h[k] * d * d
    return total


@_jit
def normal_equations(w, h, codes, masked, m, r):
    """Weighted least squares of w on the planes: m = B^T diag(h) B, r = B^T diag(h) w."""
    n = r.size
    for j in range(n):
        for k in range(GROUP):
            masked[j, k] = h[k] if (codes[k] >> j) & 1 else np.float32(0)
        total = np.float32(0)
        for k in range(GROUP):
            total += masked[j, k] * w[k]
        r[j] = total
        for i in range(j + 1):
            total = np.float32(0)
            for k in range(GROUP):
                total += masked[j, k] if (codes[k] >> i) & 1 else np.float32(0)
            m[j, i] = total
            m[i, j] = total


@_jit
def solve(m, r, a, factor):
    """a = argmin of a^T m a - 2 r^T a, held weakly to the old a (which decides unused planes).

    Cholesky on a copy in float64: m is singular whenever two planes agree on every column.
    """
    n = r.size
    trace = 0.0
    for j in range(n):
        trace += m[j, j]
    ridge = 1e-4 * trace / n + 1e-30
    for j in range(n):
        for i in range(j + 1):
            total = np.float64(m[j, i])
            if i == j:
                total += ridge
            for k in range(i):
                total -= factor[j, k] * factor[i, k]
            if i == j:
                factor[j, j] = np.sqrt(max(total, 1e-3 * ridge))
            else:
                factor[j, i] = total / factor[i, i]
    x = factor[n]  # one more row as scratch
    for j in range(n):
        total = r[j] + ridge * a[j]
        for k in range(j):
            total -= factor[j, k] * x[k]
        x[j] = total / factor[j, j]
    for j in range(n - 1, -1, -1):
        total = x[j]
        for k in range(j + 1, n):
            total -= factor[k, j] * x[k]
        x[j] = total / factor[j, j]
        a[j] = x[j]


@_jit
def order_pairs(a, out):
    """Regroup planes so that each pair has opposite signs, the larger magnitude first.

    Levels do not depend on which planes form a pair. Where one sign has too few planes, the
    surplus plane of the pair is given up (zero): the format keeps opposite signs.
    """
    n = a.size
    for p in range(n // 2):
        first = 0
        for j in range(n):
            if abs(a[j]) > abs(a[first]):
                first = j
        second = -1
        for j in range(n):
            if j != first and a[j] * a[first] < 0 and (second < 0 or abs(a[j]) > abs(a[second])):
                second = j
        if second < 0:  # none left: spend the smallest
            for j in range(n):
                taken = np.isnan(a[j]) or j == first
                if not taken and (second < 0 or abs(a[j]) < abs(a[second])):
                    second = j
            a[second] = 0
        out[2 * p] = a[first]
        out[2 * p + 1] = a[second]
        a[first] = np.nan
        a[second] = np.nan
    for j in range(n):
        a[j] = out[j]
