"""Bytes where they help most: against every choice there is, and never over the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedb.convert import allocation
from edgedb.convert.allocation import Option, allocate

option = st.builds(Option, st.integers(1, 40), st.floats(0, 10))
models = st.dictionaries(
    st.integers(0, 9), st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5
)


def best(options: dict[int, list[Option]], budget: int) -> float:
    """The least cost of all choices that fit."""
    costs = [
        sum(o.cost for o in choice)
        for choice in itertools.product(*options.values())
        if sum(o.size_bytes for o in choice) <= budget
    ]
    return min(costs, default=np.inf)


@settings(max_examples=200, deadline=None)
@given(options=models, budget=st.integers(0, 200))
def test_no_choice_is_better(options: dict[int, list[Option]], budget: int) -> None:
    found = allocate(options, budget)
    if found is None:
        assert best(options, budget) == np.inf
        return
    chosen = [options[name][i] for name, i in found.items()]
    assert list(found) == list(options)
    assert sum(o.size_bytes for o in chosen) <= budget
    assert sum(o.cost for o in chosen) == pytest.approx(best(options, budget))


@settings(max_examples=50, deadline=None)
@given(options=models, budget=st.integers(0, 200), units=st.integers(1, 30))
def test_coarse_units_never_break_the_budget(
    options: dict[int, list[Option]], budget: int, units: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(allocation, "_UNITS", units)
        found = allocate(options, budget)
    if found is None:
        assert best(options, budget) == np.inf
        return
    chosen = {name: options[name][i] for name, i in found.items()}
    left = budget - sum(o.size_bytes for o in chosen.values())
    assert left >= 0
    for name, now in chosen.items():  # what is left over helps nobody
        better = [o for o in options[name] if o.cost < now.cost]
        assert all(o.size_bytes - now.size_bytes > left for o in better)


def test_a_model_of_many_matrices() -> None:
    """Within a thousandth of the bound that a common price a byte gives."""
    rng = np.random.default_rng(0)
    options = {
        i: [Option(int(n * size), cost * 0.23 ** (n - 2)) for n in (2, 3, 4, 6)]
        for i, (size, cost) in enumerate(
            zip(rng.integers(10**5, 10**6, 200), rng.lognormal(0, 2, 200), strict=True)
        )
    }
    budget = int(sum(found[0].size_bytes for found in options.values()) * 1.45)
    found = allocate(options, budget)
    assert found is not None
    chosen = [options[name][i] for name, i in found.items()]
    assert 0.999 * budget < sum(o.size_bytes for o in chosen) <= budget

    def bound(price: float) -> float:
        each = (min(o.cost + price * o.size_bytes for o in all_) for all_ in options.values())
        return sum(each) - price * budget

    least = max(bound(price) for price in np.geomspace(1e-9, 1e-3, 400))
    assert least <= sum(o.cost for o in chosen) <= 1.01 * least
