"""Compiled inner loops of the FDB fit: one group of 64 columns of one row at a time.

Names. A group has ``2 * pairs`` *planes*; plane ``2p`` is b1 of pair p and plane ``2p + 1`` its b2.
The *code* of a weight is the integer whose bit j is its bit in plane j, so a group has ``4 **
pairs`` levels and ``levels[code]`` is the weight's value. ``a[j]`` is the float scale of plane j,
``c[j]`` its int8 code, and ``a[j] = row_scale[j // 2] * c[j]``.

Everything here releases the GIL; callers split rows between threads, so results do not depend on
their number.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# numba infers the types of compiled functions from their arguments.

from __future__ import annotations

import numpy as np
from numba import njit

from ..format.tensors import GROUP

MAX_CODE = 127
EVEN_CODE = 126  # of a row's largest scale: its half, the pair's other scale, is then a code too

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
    """Steps that the uniform start of ``pairs`` pairs tries, relative to one that clips nothing."""
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
    """codes[k] = the level nearest to w[k]; best is scratch. A pass per level, columns in lanes."""
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
def order_pairs(a):
    """Regroup planes so that each pair has opposite signs, the larger magnitude first, in place.

    Levels do not depend on which planes form a pair. Where one sign has too few planes, the
    smallest surplus plane is given up (zero), for the format keeps opposite signs.
    """
    n = a.size
    out = np.empty(n, np.float32)
    free = np.ones(n, np.bool_)
    for p in range(n // 2):
        first = second = -1
        for j in range(n):
            if free[j] and (first < 0 or abs(a[j]) > abs(a[first])):
                first = j
        free[first] = False
        for j in range(n):
            if free[j] and a[j] * a[first] <= 0 and (second < 0 or abs(a[j]) > abs(a[second])):
                second = j
        if second < 0:
            for j in range(n):
                if free[j] and (second < 0 or abs(a[j]) < abs(a[second])):
                    second = j
            a[second] = 0
        free[second] = False
        out[2 * p] = a[first]
        out[2 * p + 1] = a[second]
    a[:] = out


@_jit
def uniform_start(w, h, pattern, factors, a):
    """Best uniform grid ``low*s .. high*s`` of a sign pattern; fills a, returns its error.

    Pair p of P has planes 2u, -u with u = 4^(P-1-p) s, or both negated where bit p of ``pattern``
    is set: together they count from ``low`` to ``high`` in steps of s (digits of negabinary).
    """
    n_pairs = a.size // 2
    low = high = np.float32(0)
    unit = np.float32(1)
    for p in range(n_pairs - 1, -1, -1):
        flip = (pattern >> p) & 1
        high += unit if flip else 2 * unit
        low -= 2 * unit if flip else unit
        unit *= 4
    top = bottom = np.float32(0)
    for k in range(GROUP):
        top = max(top, w[k])
        bottom = min(bottom, w[k])
    full = max(top / high, bottom / low)
    best = np.float32(np.inf)
    best_step = np.float32(0)
    for factor in factors:
        step = full * factor
        inverse = np.float32(1) / step if step > 1e-37 else np.float32(0)
        error = np.float32(0)
        for k in range(GROUP):
            q = min(max(np.rint(w[k] * inverse), low), high)
            d = w[k] - q * step
            error += h[k] * d * d
        if error < best:
            best = error
            best_step = step
    unit = best_step
    for p in range(n_pairs - 1, -1, -1):
        sign = np.float32(-1) if (pattern >> p) & 1 else np.float32(1)
        a[2 * p] = sign * 2 * unit
        a[2 * p + 1] = -sign * unit
        unit *= 4
    return best


@_jit
def fit_group(w, h, factors, rounds, a):
    """Scales a of one group: the two best uniform starts, each refined; returns the error.

    w, h float32[64] (columns that do not exist have h = 0). Refinement alternates nearest level and
    weighted least squares ``rounds`` times.
    """
    n = a.size
    n_levels = 1 << n
    levels = np.empty(n_levels, np.float32)
    codes = np.empty(GROUP, np.int32)
    best = np.empty(GROUP, np.float32)
    masked = np.empty((n, GROUP), np.float32)
    m = np.empty((n, n), np.float32)
    r = np.empty(n, np.float32)
    factor = np.empty((n + 1, n), np.float64)
    starts = np.empty((2, n), np.float32)
    errors = np.full(2, np.inf, np.float32)
    trial = np.empty(n, np.float32)
    for pattern in range(1 << (n // 2)):
        error = uniform_start(w, h, pattern, factors, trial)
        if error < errors[0]:
            errors[1] = errors[0]
            starts[1] = starts[0]
            errors[0] = error
            starts[0] = trial
        elif error < errors[1]:
            errors[1] = error
            starts[1] = trial
    best_error = np.float32(np.inf)
    for s in range(2):
        trial[:] = starts[s]
        for _ in range(rounds):
            set_levels(trial, levels)
            nearest(w, levels, codes, best)
            normal_equations(w, h, codes, masked, m, r)
            solve(m, r, trial, factor)
        order_pairs(trial)
        set_levels(trial, levels)
        nearest(w, levels, codes, best)
        error = weighted_error(w, h, levels, codes)
        if error < best_error:
            best_error = error
            a[:] = trial
    return best_error


@_jit
def round_scales(m, r, a, row_scale, c):
    """int8 codes c near a: rounded, then each in turn set to the best integer given the others.

    Keeps opposite signs in each pair, hence |c1 + c2| <= 127 too.
    """
    n = a.size
    for j in range(n):
        scale = row_scale[j // 2]
        x = np.rint(a[j] / scale) if scale > 0 else np.float32(0)
        c[j] = np.int32(min(max(x, -MAX_CODE), MAX_CODE))
    for p in range(n // 2):
        if c[2 * p] * c[2 * p + 1] > 0:
            c[2 * p + 1] = 0
    for _ in range(4):
        changed = False
        for j in range(n):
            scale = row_scale[j // 2]
            if not m[j, j] * scale > 0:
                continue
            rest = r[j]
            for k in range(n):
                if k != j:
                    rest -= m[j, k] * row_scale[k // 2] * c[k]
            low, high = -MAX_CODE, MAX_CODE
            if c[j ^ 1] > 0:
                high = 0
            elif c[j ^ 1] < 0:
                low = 0
            x = np.rint(rest / (m[j, j] * scale))
            new = np.int32(min(max(x, np.float32(low)), np.float32(high)))
            if new != c[j]:
                c[j] = new
                changed = True
        if not changed:
            break


@_jit
def rounded_levels(row_scale, c, a, levels):
    for j in range(c.size):
        a[j] = row_scale[j // 2] * np.float32(c[j])
    set_levels(a, levels)


@_jit
def fit_rows(w, h, n_pairs, factors, rounds, row_scale, c, codes):
    """Fit every group of every row without regard to the others.

    w float32 [rows, groups * 64] zero-padded; h float32 [groups * 64], zero where padded. Writes
    row_scale float32 [rows, pairs], c int8 [rows, groups, 2 * pairs], codes uint8 [rows, groups *
    64].
    """
    rows = w.shape[0]
    groups = w.shape[1] // GROUP
    n = 2 * n_pairs
    a = np.empty((groups, n), np.float32)
    levels = np.empty(1 << n, np.float32)
    group_codes = np.empty(GROUP, np.int32)
    best = np.empty(GROUP, np.float32)
    masked = np.empty((n, GROUP), np.float32)
    m = np.empty((n, n), np.float32)
    r = np.empty(n, np.float32)
    factor = np.empty((n + 1, n), np.float64)
    cs = np.empty(n, np.int32)
    kept = np.empty(n, np.int32)
    scales = np.empty(n, np.float32)
    for row in range(rows):
        for g in range(groups):
            columns = slice(g * GROUP, (g + 1) * GROUP)
            fit_group(w[row, columns], h[columns], factors, rounds, a[g])
        for p in range(n_pairs):
            largest = np.float32(0)
            for g in range(groups):
                largest = max(largest, abs(a[g, 2 * p]))
            row_scale[row, p] = largest / np.float32(EVEN_CODE)
        for g in range(groups):
            columns = slice(g * GROUP, (g + 1) * GROUP)
            wg, hg = w[row, columns], h[columns]
            scales[:] = a[g]
            best_error = np.float32(np.inf)
            for _ in range(3):
                set_levels(scales, levels)
                nearest(wg, levels, group_codes, best)
                normal_equations(wg, hg, group_codes, masked, m, r)
                round_scales(m, r, scales, row_scale[row], cs)
                rounded_levels(row_scale[row], cs, scales, levels)
                nearest(wg, levels, group_codes, best)
                error = weighted_error(wg, hg, levels, group_codes)
                if error >= best_error:
                    break
                best_error = error
                kept[:] = cs
                for k in range(GROUP):
                    codes[row, g * GROUP + k] = group_codes[k]
                normal_equations(wg, hg, group_codes, masked, m, r)
                solve(m, r, scales, factor)
            for j in range(n):
                c[row, g, j] = kept[j]
