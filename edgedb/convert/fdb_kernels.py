"""Compiled inner loops of the FDB fit: one group of 64 columns of one row at a time.

Names. A group has *planes*; plane ``2p`` is b1 of pair p and plane ``2p + 1`` its b2, which a last
half pair lacks. The *code* of a weight is the integer whose bit j is its bit in plane j, so there
are ``2 ** planes`` levels and ``levels[code]`` is the weight's value. ``a[j]`` is the float scale
of plane j, ``c[j]`` its int8 code, and ``a[j] = row_scale[j // 2] * c[j]``. The format asks that
each code lies in -127..127, and so the sum of a pair's two.

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

# Multiples of the range-filling step that the uniform start tries; coarse grids clip more. By
# planes, from two on.
_FACTORS = tuple(
    np.linspace(lowest, 1.0, count).astype(np.float32)
    for lowest, count in (
        (0.35, 10),
        (0.45, 9),
        (0.55, 8),
        (0.65, 7),
        (0.75, 6),
        (0.8, 5),
        (0.85, 4),
    )
)


def scale_factors(planes: int) -> np.ndarray:
    """Steps that the uniform start of so many planes tries, relative to one that clips nothing."""
    return _FACTORS[planes - 2]


KEPT = 4  # of all starts, those that are refined

# Other starts, by planes, in units of the group's root mean square: their levels lie closer in the
# middle, where Gaussian weights are. Of the best of some hundred random starts on Gaussian groups
# these together leave the least error. Where levels are many the uniform grid is enough.
_SHAPES: dict[int, list[tuple[float, ...]]] = {
    2: [(2.23, -1.63), (2.4, -1.07)],
    3: [(1.96, -1.37, -0.9), (2.51, -1.94, -1.22), (2.12, -1.12, -0.5), (2.17, -1.51, 1.05)],
    4: [
        (1.79, -1.55, -1.28, 0.8),
        (2.14, -1.07, -0.8, -0.52),
        (1.87, -1.62, 1.26, -0.83),
        (1.8, -1.57, -0.83, 0.41),
        (1.82, -1.12, -0.9, -0.46),
        (1.8, -1.15, -0.89, 0.5),
    ],
}


def start_shapes(planes: int) -> np.ndarray:
    """Starts of so many planes beside the uniform one, ``[starts, planes]`` float32."""
    return np.array(_SHAPES.get(planes, []), np.float32).reshape(-1, planes)


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
def sort_planes(a):
    """Order scales by falling magnitude, in place. Levels do not depend on the order, but a pair's
    two codes share a row scale, and so should be alike."""
    for j in range(1, a.size):
        x = a[j]
        k = j
        while k > 0 and abs(a[k - 1]) < abs(x):
            a[k] = a[k - 1]
            k -= 1
        a[k] = x


@_jit
def uniform_start(w, h, mirrored, factors, a):
    """Best uniform grid ``low*s .. high*s`` of all planes; fills a, returns its error.

    Of n planes the first is ``2^(n-1) s`` and each other the negative half of the one before, so
    they count from ``low = 1 - 2^(n-1)`` to ``high = 2^(n-1)`` in steps of s, or the mirror image.
    """
    n = a.size
    unit = np.float32(1 << (n - 1))
    high = unit - 1 if mirrored else unit
    low = -unit if mirrored else 1 - unit
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
    a[0] = (-unit if mirrored else unit) * best_step
    for j in range(1, n):
        a[j] = -a[0] / np.float32(1 << j)
    return best


@_jit
def fit_group(w, h, factors, shapes, rounds, a):
    """Scales a of one group: the best ``KEPT`` starts, each refined; returns the error.

    w, h float32[64] (columns that do not exist have h = 0). Starts are the uniform grid and
    ``shapes [starts, planes]`` in units of the root mean square of w, all of either sign.
    Refinement alternates nearest level and weighted least squares ``rounds`` times.
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
    starts = np.zeros((KEPT, n), np.float32)
    errors = np.full(KEPT, np.inf, np.float32)
    trial = np.empty(n, np.float32)
    total = energy = np.float32(0)
    for k in range(GROUP):
        total += h[k]
        energy += h[k] * w[k] * w[k]
    size = np.sqrt(energy / total) if total > 0 else np.float32(0)
    for i in range(2 * len(shapes) + 2):
        if i < 2:
            error = uniform_start(w, h, i == 1, factors, trial)
        else:
            sign = size if i % 2 == 0 else -size
            for j in range(n):
                trial[j] = sign * shapes[i // 2 - 1, j]
            set_levels(trial, levels)
            nearest(w, levels, codes, best)
            error = weighted_error(w, h, levels, codes)
        k = KEPT
        while k > 0 and error < errors[k - 1]:
            k -= 1
        if k < KEPT:
            for j in range(KEPT - 1, k, -1):
                errors[j] = errors[j - 1]
                starts[j] = starts[j - 1]
            errors[k] = error
            starts[k] = trial
    best_error = np.float32(np.inf)
    for s in range(KEPT):
        if not errors[s] < np.inf:
            break
        trial[:] = starts[s]
        for _ in range(rounds):
            set_levels(trial, levels)
            nearest(w, levels, codes, best)
            normal_equations(w, h, codes, masked, m, r)
            solve(m, r, trial, factor)
        set_levels(trial, levels)
        nearest(w, levels, codes, best)
        error = weighted_error(w, h, levels, codes)
        if error < best_error:
            best_error = error
            a[:] = trial
    sort_planes(a)
    return best_error


@_jit
def round_scales(m, r, a, row_scale, c):
    """int8 codes c near a: rounded, then each in turn set to the best integer given the others."""
    n = a.size
    for j in range(n):
        scale = row_scale[j // 2]
        x = np.rint(a[j] / scale) if scale > 0 else np.float32(0)
        room = MAX_CODE if j % 2 == 0 else min(MAX_CODE, MAX_CODE - c[j - 1])
        least = -MAX_CODE if j % 2 == 0 else max(-MAX_CODE, -MAX_CODE - c[j - 1])
        c[j] = np.int32(min(max(x, np.float32(least)), np.float32(room)))
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
            other = c[j ^ 1] if j ^ 1 < n else 0
            low = np.float32(max(-MAX_CODE, -MAX_CODE - other))
            high = np.float32(min(MAX_CODE, MAX_CODE - other))
            x = np.rint(rest / (m[j, j] * scale))
            new = np.int32(min(max(x, low), high))
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
def fit_rows(w, h, factors, shapes, rounds, row_scale, c, codes):
    """Fit every group of every row without regard to the others.

    w float32 [rows, groups * 64] zero-padded; h float32 [groups * 64], zero where padded. Writes
    row_scale float32 [rows, pairs], a half counted as one; c int8 [rows, groups, planes]; codes
    uint8 [rows, groups * 64].
    """
    rows = w.shape[0]
    groups = w.shape[1] // GROUP
    n = c.shape[2]
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
            fit_group(w[row, columns], h[columns], factors, shapes, rounds, a[g])
        for p in range(row_scale.shape[1]):
            largest = np.float32(0)
            for g in range(groups):
                largest = max(largest, abs(a[g, 2 * p]))
                if 2 * p + 1 < n:
                    largest = max(largest, abs(a[g, 2 * p] + a[g, 2 * p + 1]))
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
