"""Compiled inner loops of the fit that knows the input's correlations (see ``feedback``).

One block is 64 columns. Its loss for a row is ``(w - q)^T h (w - q)`` with h ``[64, 64]``; ``u`` is
upper triangular with ``h^-1 = u^T u``. Other names are those of ``edgedb.convert.fdb_kernels``.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# numba infers the types of compiled functions from their arguments.

from __future__ import annotations

import numpy as np

from ..format.tensors import GROUP
from .fdb_kernels import (
    _jit,
    fit_group,
    nearest,
    normal_equations,
    round_scales,
    rounded_levels,
    set_levels,
    solve,
)


@_jit
def sort_levels(levels, order, middles):
    """order: codes by ascending level; middles[i] separates ranks i and i + 1. Insertion sort."""
    n = levels.size
    for i in range(n):
        code = order[i]
        k = i
        while k > 0 and levels[order[k - 1]] > levels[code]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = code
    for i in range(n - 1):
        middles[i] = np.float32(0.5) * (levels[order[i]] + levels[order[i + 1]])


@_jit
def nearest_rank(x, middles, n_bits):
    """Rank of the level nearest to x, by n_bits halvings of the 2^n_bits ranks."""
    rank = 0
    step = 1 << (n_bits - 1)
    while step:
        if x > middles[rank + step - 1]:
            rank += step
        step >>= 1
    return rank


@_jit
def feed_back(w, u, levels, order, middles, n_bits, codes, v):
    """Quantize columns in order, each error spread over the later columns (GPTQ); v is scratch."""
    for k in range(GROUP):
        v[k] = w[k]
    for j in range(GROUP):
        code = order[nearest_rank(v[j], middles, n_bits)]
        codes[j] = code
        e = (v[j] - levels[code]) / u[j, j]
        for k in range(j + 1, GROUP):
            v[k] -= e * u[j, k]


@_jit
def gradient(w, h, levels, codes, g):
    """g = h (q - w); returns the loss (q - w)^T h (q - w)."""
    for k in range(GROUP):
        g[k] = 0
    for j in range(GROUP):
        d = levels[codes[j]] - w[j]
        for k in range(GROUP):
            g[k] += d * h[j, k]
    loss = np.float32(0)
    for k in range(GROUP):
        loss += (levels[codes[k]] - w[k]) * g[k]
    return loss


@_jit
def descend(h, levels, order, middles, n_bits, codes, g, sweeps):
    """Set one weight at a time to its best level given all others; never raises the loss."""
    for _ in range(sweeps):
        changed = False
        for j in range(GROUP):
            if not h[j, j] > 0:
                continue
            now = levels[codes[j]]
            code = order[nearest_rank(now - g[j] / h[j, j], middles, n_bits)]
            d = levels[code] - now
            if d != 0:
                codes[j] = code
                changed = True
                for k in range(GROUP):
                    g[k] += d * h[j, k]
        if not changed:
            break


@_jit
def correlated_normal_equations(w, h, codes, masked, m, r):
    """Least squares of w on the planes under h: m = B^T h B, r = B^T h w."""
    n = r.size
    for p in range(n):
        for k in range(GROUP):
            masked[p, k] = 0
        for j in range(GROUP):
            if (codes[j] >> p) & 1:
                for k in range(GROUP):
                    masked[p, k] += h[j, k]
        total = np.float32(0)
        for k in range(GROUP):
            total += masked[p, k] * w[k]
        r[p] = total
        for i in range(p + 1):
            total = np.float32(0)
            for k in range(GROUP):
                total += masked[p, k] if (codes[k] >> i) & 1 else np.float32(0)
            m[p, i] = total
            m[i, p] = total


@_jit
def solve_block(
    w, h, u, factors, shapes, rounds, tries, sweeps, fresh, row_scale, c, codes, quantized
):
    """Codes and scales of one block for many rows, each row by itself.

    w float32 [rows, 64]: the weights to reproduce. row_scale float32 [rows, pairs] is given; c int8
    [rows, planes] and codes uint8 [rows, 64] are the result, and where ``fresh`` is false the
    start. quantized float32 [rows, 64] receives the values. The loss never rises from the start's.
    """
    rows = w.shape[0]
    n = c.shape[1]
    levels = np.empty(1 << n, np.float32)
    order = np.empty(1 << n, np.int32)
    middles = np.empty((1 << n) - 1, np.float32)
    work = np.empty(GROUP, np.int32)
    best = np.empty(GROUP, np.float32)
    v = np.empty(GROUP, np.float32)
    g = np.empty(GROUP, np.float32)
    masked = np.empty((n, GROUP), np.float32)
    m = np.empty((n, n), np.float32)
    r = np.empty(n, np.float32)
    factor = np.empty((n + 1, n), np.float64)
    cs = np.empty(n, np.int32)
    a = np.empty(n, np.float32)
    importance = np.empty(GROUP, np.float32)
    for k in range(GROUP):
        importance[k] = 1 / (u[k, k] * u[k, k]) if h[k, k] > 0 else np.float32(0)
    for i in range(order.size):
        order[i] = i
    for row in range(rows):
        wr, rs = w[row], row_scale[row]
        best_loss = np.float32(np.inf)
        if fresh:
            fit_group(wr, importance, factors, shapes, rounds, a)
            set_levels(a, levels)
            nearest(wr, levels, work, best)
            normal_equations(wr, importance, work, masked, m, r)
            round_scales(m, r, a, rs, cs)
        else:
            for j in range(n):
                cs[j] = c[row, j]
            for k in range(GROUP):
                work[k] = codes[row, k]
            rounded_levels(rs, cs, a, levels)
            best_loss = gradient(wr, h, levels, work, g)
            for k in range(GROUP):
                quantized[row, k] = levels[work[k]]
        for trial in range(tries):
            rounded_levels(rs, cs, a, levels)
            sort_levels(levels, order, middles)
            if trial == 0:
                feed_back(wr, u, levels, order, middles, n, work, v)
            gradient(wr, h, levels, work, g)
            descend(h, levels, order, middles, n, work, g, sweeps)
            loss = np.float32(0)
            for k in range(GROUP):
                loss += (levels[work[k]] - wr[k]) * g[k]
            if not loss < best_loss:
                if trial == 0 and not fresh:
                    # The restart lost: go on from what was there.
                    for k in range(GROUP):
                        work[k] = codes[row, k]
                    for j in range(n):
                        cs[j] = c[row, j]
                else:
                    break
            else:
                best_loss = loss
                for j in range(n):
                    c[row, j] = cs[j]
                for k in range(GROUP):
                    codes[row, k] = work[k]
                    quantized[row, k] = levels[work[k]]
            correlated_normal_equations(wr, h, work, masked, m, r)
            for j in range(n):
                a[j] = rs[j // 2] * np.float32(cs[j])
            solve(m, r, a, factor)
            round_scales(m, r, a, rs, cs)
