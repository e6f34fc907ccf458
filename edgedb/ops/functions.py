"""Functions of each element by itself, and their slopes, in numpy.

The definition in ``reference``, the exporter's pass and its adjoint share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32, or float64 where a test wants it exact; of any shape, and what comes out is alike.
Reals = NDArray[Any]

# gelu_tanh(x) = x * sigmoid(x * (a + b * x^2)), because (1 + tanh u) / 2 = sigmoid(2u).
GELU_TANH = (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)


def _silu(x: Reals) -> Reals:
    with np.errstate(over="ignore"):  # exp(-x) may overflow to infinity: silu is then 0
        out: Reals = x / (1 + np.exp(-x))
    return out


def _gelu_tanh(x: Reals) -> Reals:
    a, b = GELU_TANH
    with np.errstate(over="ignore"):
        out: Reals = x / (1 + np.exp(-(x * (a + b * (x * x)))))
    return out


# gelu(x) = max(x, 0) - |x| * tail, the tail of the normal distribution beyond |x|, which is
# exp(-x^2 / 2) * t * p(t) with t = 1 / (1 + |x| / 4): p's coefficients, the constant first, for a
# relative error of 8e-9 up to |x| = 14. activation_body.h has the same in C.
_GELU = tuple(
    map(
        float.fromhex,
        (
            *("0x1.989142p-4", "0x1.978582p-4", "0x1.873b7ep-4", "0x1.26e8ecp-4", "0x1.62f1fcp-4"),
            *("0x1.a09220p-7", "0x1.d1deccp-6", "0x1.a72562p-5", "-0x1.0132f6p-4", "0x1.0fa496p-6"),
        ),
    )
)


def _tail(size: Reals) -> Reals:
    """Of the normal distribution, beyond ``size``, which is not negative."""
    t = 1 / (1 + size / 4)
    p = np.full_like(t, _GELU[-1])
    for coefficient in _GELU[-2::-1]:
        p = p * t + coefficient
    out: Reals = t * p * np.exp(-size * size / 2)
    return out


def _gelu(x: Reals) -> Reals:
    size = np.abs(x)
    with np.errstate(over="ignore", under="ignore"):  # far out there is no tail
        return np.maximum(x, 0) - size * _tail(size)


def _relu(x: Reals) -> Reals:
    return np.maximum(x, 0)


def _gelu_slope(x: Reals) -> Reals:
    with np.errstate(over="ignore", under="ignore"):
        tail = _tail(np.abs(x))
        density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        out: Reals = np.where(x < 0, tail, 1 - tail) + x * density
    return out.astype(x.dtype)


def _relu_slope(x: Reals) -> Reals:
    return (x > 0).astype(x.dtype)


def _silu_slope(x: Reals) -> Reals:
    share = _sigmoid(x)
    out: Reals = share * (1 + x * (1 - share))
    return out


def _gelu_tanh_slope(x: Reals) -> Reals:
    a, b = GELU_TANH
    share = _sigmoid(x * (a + b * (x * x)))
    out: Reals = share * (1 + x * (1 - share) * (a + 3 * b * (x * x)))
    return out


def _sigmoid(x: Reals) -> Reals:
    with np.errstate(over="ignore"):
        return np.reciprocal(1 + np.exp(-x))


def softcap(x: Reals, cap: float) -> Reals:
    """``cap * tanh(x / cap)``."""
    size = x.dtype.type(cap)
    out: Reals = size * np.tanh(x / size)
    return out


def softcap_slope(y: Reals, cap: float) -> Reals:
    """Where ``softcap`` gives ``y``."""
    out: Reals = 1 - np.square(y / y.dtype.type(cap))
    return out


# Those of ``values.ACTIVATIONS``.
FUNCTIONS: Mapping[str, Callable[[Reals], Reals]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": _relu,
}
SLOPES: Mapping[str, Callable[[Reals], Reals]] = {
    "silu": _silu_slope,
    "gelu_tanh": _gelu_tanh_slope,
    "gelu": _gelu_slope,
    "relu": _relu_slope,
}


def clamped_gate(gate: Reals, up: Reals, alpha: float, limit: float) -> Reals:
    """``Recorder.clamped_gate``."""
    a, b = gate.dtype.type(alpha), gate.dtype.type(limit)
    g, u = np.minimum(gate, b), np.clip(up, -b, b)
    with np.errstate(over="ignore"):  # exp may overflow to infinity: the gate is then 0
        out: Reals = g / (1 + np.exp(-a * g)) * (u + 1)
    return out


def clamped_gate_slopes(gate: Reals, up: Reals, alpha: float, limit: float) -> tuple[Reals, Reals]:
    """How ``clamped_gate`` changes with its gate, and with ``up``."""
    g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        share = np.reciprocal(1 + np.exp(-alpha * g))
    of_gate = (u + 1) * share * (1 + alpha * g * (1 - share))
    return np.where(gate < limit, of_gate, 0), np.where(np.abs(up) < limit, g * share, 0)
