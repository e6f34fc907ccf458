"""ALiBi's slopes: those of the paper, and those between where heads are no power of 2."""

from __future__ import annotations

from edgedb.model.families.bloom import slopes


def test_slopes_are_a_geometric_series() -> None:
    assert slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert slopes(16) == tuple(2.0 ** (-i / 2) for i in range(1, 17))
    assert slopes(1) == (2.0**-8,)


def test_heads_beyond_a_power_of_two_have_slopes_between() -> None:
    assert slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    assert slopes(12) == (*slopes(8), *(2.0 ** (-i / 2) for i in (1, 3, 5, 7)))
    for n in range(1, 130):
        assert len(set(slopes(n))) == n and all(2.0**-8 <= one < 1 for one in slopes(n))
