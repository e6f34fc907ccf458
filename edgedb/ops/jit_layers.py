# mypy: disable-error-code="call-arg, no-untyped-def, var-annotated"
"""Compiled operations between the matrix products: norms, rotary embedding, attention, gates.

Caches are float32, or float16 given as uint16 bits. Sums run in a fixed order of their own, which
is not the reference's: results agree with it within a relative 1e-5 or so, not bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .functions import GELU_TANH
from .jit_matmul import jit
from .jit_narrow import fma, to_f32

_A, _B = map(np.float32, GELU_TANH)
KEYS = 64  # cache rows widened at a time, so that they stay in the first-level cache


@jit()
def rmsnorm(x, weight, out, n, eps):
    d = weight.size
    for t in range(n):
        total = 0.0
        for i in range(d):
            total += np.float64(x[t, i]) * np.float64(x[t, i])
        scale = np.float32(1.0 / math.sqrt(total / d + eps))
        for i in range(d):
            out[t, i] = x[t, i] * scale * weight[i]


@jit()
def layernorm(x, weight, shift, out, eps):
    d = weight.size
    for t in range(len(x)):
        total = 0.0
        for i in range(d):
            total += np.float64(x[t, i])
        mean = np.float32(total / d)
        total = 0.0
        for i in range(d):
            total += np.float64(x[t, i] - mean) * np.float64(x[t, i] - mean)
        scale = np.float32(1.0 / math.sqrt(total / d + eps))
        for i in range(d):
            out[t, i] = (x[t, i] - mean) * scale * weight[i] + shift[i]


@jit()
def rope(x, cos, sin, out):
    n, heads, head_dim = x.shape
    half = head_dim // 2
    for t in range(n):
        for h in range(heads):
            for i in range(half):
                first, second = x[t, h, i], x[t, h, half + i]
                out[t, h, i] = first * cos[t, i] - second * sin[t, i]
                out[t, h, half + i] = second * cos[t, i] + first * sin[t, i]


@jit()
def _scores(q, k_cache, kv, begin, length, first, last, heads, scale, scores):
    """``scores[task, j - begin] = scale * q . k_j``; a task is one of ``heads`` queries of a
    token."""
    head_dim = k_cache.shape[2]
    keys = np.zeros((head_dim, KEYS), np.float32)  # transposed: keys side by side in the lanes
    for start in range(begin, length, KEYS):
        count = min(KEYS, length - start)
        for j in range(count):
            source = k_cache[kv, start + j]
            for i in range(head_dim):
                keys[i, j] = to_f32(source[i])
        for t in range(first, last):
            for h in range(heads):
                row = scores[(t - first) * heads + h, start - begin : start - begin + KEYS]
                query = q[t, (kv * heads + h) * head_dim : (kv * heads + h + 1) * head_dim]
                row[:] = 0
                for i in range(0, head_dim, 2):
                    a, b = query[i], query[i + 1]
                    k0, k1 = keys[i], keys[i + 1]
                    for j in range(KEYS):
                        row[j] = fma(b, k1[j], fma(a, k0[j], row[j]))
                for j in range(KEYS):
                    row[j] = row[j] * scale


@jit()
def _softcap(row, cap):
    for j in range(row.size):
        row[j] = cap * math.tanh(row[j] / cap)


@jit()
def _softmax(row, sink):
    """Beside a score of a key that is not there, or minus infinity."""
    peak = max(row[0], sink)
    for j in range(row.size):
        peak = max(peak, row[j])
    total = np.float32(math.exp(np.float32(sink - peak)))
    for j in range(row.size):
        row[j] = math.exp(np.float32(row[j] - peak))
        total += row[j]
    for j in range(row.size):
        row[j] = row[j] / total


@jit()
def _attend(task, tokens, q, k_cache, v_cache, sinks, out, position, scale, cap, window, slopes):
    """One key/value head and one run of ``tokens`` queries, whose keys are widened together."""
    n_kv, _, head_dim = k_cache.shape
    heads = out.shape[1] // (n_kv * head_dim)
    kv = task % n_kv
    first = task // n_kv * tokens
    last = min(q.shape[0], first + tokens)
    begin, length = max(0, position + first + 1 - window), position + last  # keys that some see
    columns = (length - begin + KEYS - 1) // KEYS * KEYS
    scores = np.empty(((last - first) * heads, columns), np.float32)
    _scores(q, k_cache, kv, begin, length, first, last, heads, scale, scores)
    for t in range(first, last):
        opens = max(0, position + t + 1 - window) - begin
        for h in range(heads):
            row = scores[(t - first) * heads + h]
            if cap > 0:
                _softcap(row[opens : position + t + 1 - begin], cap)
            if slopes.size:
                for j in range(row.size):
                    distance = position + t - begin - j
                    row[j] -= slopes[kv * heads + h] * np.float32(distance)
            row[:opens] = 0
            _softmax(row[opens : position + t + 1 - begin], sinks[kv * heads + h])
            out[t, (kv * heads + h) * head_dim : (kv * heads + h + 1) * head_dim] = 0
    values = np.empty((KEYS, head_dim), np.float32)
    for start in range(begin, length, KEYS):
        count = min(KEYS, length - start)
        for j in range(count):
            source = v_cache[kv, start + j]
            for i in range(head_dim):
                values[j, i] = to_f32(source[i])
        for t in range(first, last):
            unseen = max(0, position + t + 1 - window - start)
            seen = min(count, position + t + 1 - start)
            for h in range(heads):
                row = scores[(t - first) * heads + h]
                total = out[t, (kv * heads + h) * head_dim : (kv * heads + h + 1) * head_dim]
                for j in range(unseen, seen):
                    p, value = row[start - begin + j], values[j]
                    for i in range(head_dim):
                        total[i] = fma(p, value[i], total[i])


@jit()
def attention(tokens, q, k_cache, v_cache, sinks, out, position, scale, cap, window, slopes):
    for task in range(k_cache.shape[0] * ((q.shape[0] + tokens - 1) // tokens)):
        _attend(task, tokens, q, k_cache, v_cache, sinks, out, position, scale, cap, window, slopes)


@jit(parallel=True)
def attention_parallel(
    tokens, q, k_cache, v_cache, sinks, out, position, scale, cap, window, slopes
):
    for task in prange(k_cache.shape[0] * ((q.shape[0] + tokens - 1) // tokens)):
        _attend(task, tokens, q, k_cache, v_cache, sinks, out, position, scale, cap, window, slopes)


_ROOT_HALF = math.sqrt(0.5)


@jit()
def _silu_row(x, out):
    for i in range(out.size):
        out[i] = x[i] / (np.float32(1) + math.exp(-x[i]))


@jit()
def silu(x, out):
    for t in range(x.shape[0]):
        _silu_row(x[t], out[t])


@jit(parallel=True)
def silu_parallel(x, out):
    for t in prange(x.shape[0]):
        _silu_row(x[t], out[t])


@jit()
def _gelu_tanh_row(x, out):
    for i in range(out.size):
        z = x[i] * (_A + _B * (x[i] * x[i]))
        out[i] = x[i] / (np.float32(1) + math.exp(-z))


@jit()
def gelu_tanh(x, out):
    for t in range(x.shape[0]):
        _gelu_tanh_row(x[t], out[t])


@jit(parallel=True)
def gelu_tanh_parallel(x, out):
    for t in prange(x.shape[0]):
        _gelu_tanh_row(x[t], out[t])


@jit()
def _gelu_row(x, out):
    for i in range(out.size):
        out[i] = 0.5 * x[i] * math.erfc(-x[i] * _ROOT_HALF)


@jit()
def gelu(x, out):
    for t in range(x.shape[0]):
        _gelu_row(x[t], out[t])


@jit(parallel=True)
def gelu_parallel(x, out):
    for t in prange(x.shape[0]):
        _gelu_row(x[t], out[t])


@jit()
def relu(x, out):
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            out[t, i] = x[t, i] if not x[t, i] < 0 else np.float32(0)


# An activation by one thread and by several.
ACTIVATIONS = {
    "gelu": (gelu, gelu_parallel),
    "relu": (relu, relu),  # too little to share
    "silu": (silu, silu_parallel),
    "gelu_tanh": (gelu_tanh, gelu_tanh_parallel),
}
