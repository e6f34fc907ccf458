"""exp, log, sine and cosine whose bits are the same on every CPU.

numpy and the C library choose other code for other instruction sets, and the last bits differ.
Here every step is an elementwise float64 addition, multiplication, division or rounding to an
integer, each of which IEEE 754 defines exactly, in a fixed order. Methods: argument reduction
after Cody and Waite with constants in parts, then Taylor polynomials long enough for float64. The
error is below 2 units in the last place (tests/ops/test_exactmath.py).
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

# ln 2 in two parts; the first has 32 bits, so that k * _LN2_HIGH is exact for |k| < 2**21.
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_INV_LN2 = float.fromhex("0x1.71547652b82fep+0")

# pi / 2 in four parts of 26 bits; k * part is exact for |k| < 2**27.
_HALF_PI = tuple(
    map(
        float.fromhex,
        (
            "0x1.921fb50000000p+0",
            "0x1.110b460000000p-26",
            "0x1.1a62630000000p-54",
            "0x1.8a2e03707344ap-81",
        ),
    )
)
_INV_HALF_PI = float.fromhex("0x1.45f306dc9c883p-1")
MAX_ANGLE = float(1 << 26)


def _taylor(*terms: Fraction) -> tuple[float, ...]:
    return tuple(map(float, terms))


# exp(r) = 1 + r + r^2 * E(r),  |r| <= ln(2) / 2
_EXP = _taylor(*(Fraction(1, factorial(n)) for n in range(2, 15)))
# log((1 + s) / (1 - s)) = 2s + s * L(s^2),  |s| <= 0.1716
_LOG = _taylor(*(Fraction(2, 2 * n + 1) for n in range(1, 13)))
# sin(r) = r + r^3 * S(r^2),  cos(r) = 1 - r^2 / 2 + r^4 * C(r^2),  |r| <= pi / 4
_SIN = _taylor(*(Fraction((-1) ** n, factorial(2 * n + 1)) for n in range(1, 10)))
_COS = _taylor(*(Fraction((-1) ** n, factorial(2 * n)) for n in range(2, 11)))


def _horner(coefficients: tuple[float, ...], x: Doubles) -> Doubles:
    """``c0 + x * (c1 + x * (c2 + ...))``."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _power_of_two(k: npt.NDArray[np.int64]) -> Doubles:
    """``2.0 ** k`` for ``-1022 <= k <= 1023``, by writing the exponent field."""
    return ((k + 1023) << 52).view(np.float64)


def exp(x: npt.ArrayLike) -> Doubles:
    """e to the power of each element; float64 of the same shape. NaN stays NaN."""
    x = np.asarray(x, np.float64)
    # Beyond these bounds the result is 0 or inf anyway, and k fits the exponent arithmetic below.
    bounded = np.where(np.isnan(x), 0.0, np.minimum(np.maximum(x, -750.0), 710.0))
    k = np.rint(bounded * _INV_LN2)
    r = (bounded - k * _LN2_HIGH) - k * _LN2_LOW
    mantissa = 1.0 + (r + r * r * _horner(_EXP, r))
    # Two factors: 2**k alone may be beyond the range of normal numbers.
    exponent = k.astype(np.int64)
    half = exponent >> 1
    with np.errstate(over="ignore", under="ignore"):
        result = mantissa * _power_of_two(half) * _power_of_two(exponent - half)
    return np.where(np.isnan(x), x, np.where(x > 709.79, np.inf, result))


def log(x: npt.ArrayLike) -> Doubles:
    """Natural logarithm of each element; float64. ``log(0) = -inf``, NaN for negative numbers."""
    x = np.asarray(x, np.float64)
    regular = (x > 0) & (x < np.inf)
    mantissa, exponent = np.frexp(np.where(regular, x, 1.0))
    # Move the mantissa from [0.5, 1) to [sqrt(0.5), sqrt(2)), around the zero of the logarithm.
    small = mantissa < float.fromhex("0x1.6a09e667f3bcdp-1")
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    k = (exponent - small).astype(np.float64)
    f = mantissa - 1.0
    s = f / (2.0 + f)
    z = s * s
    # 2s = f - s*f, and s*f = f^2/2 - s*f^2/2: the large term f enters without an error.
    square = 0.5 * f * f
    correction = s * (square + z * _horner(_LOG, z)) + k * _LN2_LOW
    result = k * _LN2_HIGH - ((square - correction) - f)
    special = np.where(x == 0, -np.inf, np.where(x == np.inf, np.inf, np.nan))
    return np.where(regular, result, special)


def sincos(x: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    """Sine and cosine of each element (radians, ``|x| <= MAX_ANGLE``); float64.

    Raises ``ValueError`` for a larger angle or NaN.
    """
    x = np.asarray(x, np.float64)
    if not np.all(np.abs(x) <= MAX_ANGLE):
        raise ValueError(f"sincos takes angles up to {MAX_ANGLE:g}")
    k = np.rint(x * _INV_HALF_PI)
    # The first two differences are exact; r + tail is x - k*pi/2 to more than 53 bits.
    high = (x - k * _HALF_PI[0]) - k * _HALF_PI[1]
    third = k * _HALF_PI[2]
    reduced = high - third
    tail = ((high - reduced) - third) - k * _HALF_PI[3]
    r = reduced + tail
    tail = (reduced - r) + tail

    z = r * r
    sine = r + (tail * (1.0 - 0.5 * z) + r * z * _horner(_SIN, z))
    half = 0.5 * z
    main = 1.0 - half
    cosine = main + (((1.0 - main) - half) + (z * z * _horner(_COS, z) - r * tail))

    quadrant = k.astype(np.int64) & 3
    swap = (quadrant & 1).astype(bool)
    sin_x = np.where(swap, cosine, sine)
    cos_x = np.where(swap, sine, cosine)
    return (
        np.where(quadrant >= 2, -sin_x, sin_x),
        np.where((quadrant == 1) | (quadrant == 2), -cos_x, cos_x),
    )
