"""Elementary functions: error against exact decimal arithmetic, special values, fixed bits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from edgedb.model.config import ModelConfig
from edgedb.model.rope import inverse_frequencies, rope_tables
from edgedb.model.rotary import RopeScaling
from edgedb.ops.exactmath import MAX_ANGLE, exp, log, sincos

PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899863"
)
DIGITS = 80


def ulps(computed: np.ndarray, x: np.ndarray, exact: Callable[[Decimal], Decimal]) -> float:
    """Largest error of ``computed`` in units in the last place of the exact value."""
    worst = 0.0
    with localcontext() as context:
        context.prec = DIGITS
        for value, argument in zip(computed.tolist(), x.tolist(), strict=True):
            truth = exact(Decimal(argument))
            unit = Decimal(math.ulp(float(truth)))
            worst = max(worst, float(abs(Decimal(value) - truth) / unit))
    return worst


def decimal_sin(x: Decimal) -> Decimal:
    """Sine by its series after reduction modulo pi."""
    turns = (x / PI).to_integral_value()
    x -= turns * PI
    term, total, n = x, x, 1
    while abs(term) > Decimal(10) ** -70:
        term *= -x * x / ((n + 1) * (n + 2))
        total += term
        n += 2
    return -total if turns % 2 else total


def decimal_cos(x: Decimal) -> Decimal:
    return decimal_sin(x + PI / 2)


def test_exp_is_within_two_ulps() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-700, 700, 600), rng.uniform(-2, 2, 600), [1e-300, -1e-10, 1]])
    assert ulps(exp(x), x, Decimal.exp) < 2


def test_exp_of_the_smallest_results() -> None:
    x = np.linspace(-745, -708, 100)
    assert ulps(exp(x), x, Decimal.exp) < 2


def test_log_is_within_two_ulps() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [
            np.exp2(rng.uniform(-1070, 1020, 400)),
            rng.uniform(0.5, 2, 400),
            1 + rng.uniform(-1e-6, 1e-6, 400),
        ]
    )
    assert ulps(log(x), x, Decimal.ln) < 2


@pytest.mark.parametrize("largest", [1.0, 100.0, 1e5, MAX_ANGLE])
def test_sincos_is_within_two_ulps(largest: float) -> None:
    x = np.random.default_rng(2).uniform(-largest, largest, 400)
    sin, cos = sincos(x)
    assert ulps(sin, x, decimal_sin) < 2
    assert ulps(cos, x, decimal_cos) < 2


def test_sincos_next_to_its_zeros() -> None:
    x = np.array([float(n) * (math.pi / 2) for n in (1, 2, 3, 4, 5, 1000, 123457, 9_999_999)])
    sin, cos = sincos(x)
    assert ulps(sin, x, decimal_sin) < 2
    assert ulps(cos, x, decimal_cos) < 2


def test_special_values() -> None:
    inf, nan = math.inf, math.nan
    np.testing.assert_array_equal(
        exp([0, -0.0, inf, -inf, nan, 1000, -1000, 1e300, -1e300]),
        [1, 1, inf, 0, nan, inf, 0, inf, 0],
    )
    np.testing.assert_array_equal(log([1, 0, inf, -1, nan]), [0, -inf, inf, nan, nan])
    np.testing.assert_array_equal(sincos([0.0]), [[0], [1]])
    for bad in (nan, inf, 2 * MAX_ANGLE):
        with pytest.raises(ValueError, match="angles"):
            sincos([bad])


def test_shapes_are_kept() -> None:
    assert exp(1.0).shape == () and log(np.ones((2, 0, 3))).shape == (2, 0, 3)
    assert sincos(np.ones((4, 5)))[1].shape == (4, 5)


def test_bits_do_not_depend_on_the_position_in_the_array() -> None:
    x = np.random.default_rng(3).uniform(-9, 9, 67)
    for function in (exp, lambda v: log(np.abs(v)), lambda v: sincos(v)[0]):
        whole = function(x)
        for i in range(len(x)):
            assert function(x[i : i + 1]).tobytes() == whole[i : i + 1].tobytes()


def test_bits_are_the_known_ones() -> None:
    """The same digest on every CPU and with every numpy: this is what the module is for."""
    x = np.arange(-4096, 4096, dtype=np.float64) * 0.15625
    sin, cos = sincos(x)
    data = b"".join(a.astype("<f8").tobytes() for a in (exp(x), log(np.abs(x) + 0.1), sin, cos))
    assert hashlib.sha256(data).hexdigest()[:16] == "59701eed712f74b5"


def llama(
    head_dim: int = 64, theta: float = 1e4, scaling: RopeScaling | None = None
) -> ModelConfig:
    return ModelConfig(
        "llama",
        *(64, 64, 64, 1, 1, 1, head_dim, 1 << 17),
        rope_theta=theta,
        rope_scaling=scaling or RopeScaling(),
    )


def test_rope_tables_are_correctly_rounded_angles() -> None:
    config = llama(head_dim=6, theta=5e5)
    cos, sin = rope_tables(config, 1000)
    assert cos.shape == sin.shape == (1000, 3) and cos.dtype == np.float32
    frequencies = inverse_frequencies(config)
    assert frequencies[1] == np.float32(5e5 ** (-2 / 6))
    for position in (0, 1, 7, 999):
        for i in range(3):
            angle = Fraction(position) * Fraction(float(frequencies[i]))
            assert cos[position, i] == pytest.approx(math.cos(angle), abs=6e-8)
            assert sin[position, i] == pytest.approx(math.sin(angle), abs=6e-8)


def test_linear_scaling_divides_every_frequency() -> None:
    plain = inverse_frequencies(llama())
    scaled = inverse_frequencies(llama(scaling=RopeScaling("linear", factor=4.0)))
    np.testing.assert_array_equal(scaled, plain / 4)


def test_llama3_scaling_keeps_high_slows_low_and_blends_between() -> None:
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    config = llama(head_dim=128, theta=5e5, scaling=scaling)
    plain, scaled = inverse_frequencies(llama(128, 5e5)), inverse_frequencies(config)
    wavelength = 2 * np.pi / plain.astype(np.float64)
    keep, slow = wavelength < 8192 / 4, wavelength > 8192 / 1
    assert keep.any() and slow.any() and (~keep & ~slow).any()
    np.testing.assert_array_equal(scaled[keep], plain[keep])
    np.testing.assert_array_equal(scaled[slow], plain[slow] / np.float32(8))
    smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
    blended = (1 - smooth) * plain / 8 + smooth * plain
    np.testing.assert_allclose(scaled[~keep & ~slow], blended[~keep & ~slow], rtol=2e-7)
