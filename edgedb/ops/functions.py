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


# Those of ``program.ACTIVATIONS``.
FUNCTIONS: Mapping[str, Callable[[Reals], Reals]] = {"silu": _silu, "gelu_tanh": _gelu_tanh}
SLOPES: Mapping[str, Callable[[Reals], Reals]] = {
    "silu": _silu_slope,
    "gelu_tanh": _gelu_tanh_slope,
}
