"""Which matrix gets how many bits: the choice that costs the least in all under a budget of bytes.

Every matrix has options, each with its bytes and what its error costs at the end of the model
(nats of KL divergence a token, to second order a sum over matrices). The choice is exact for sizes
rounded up to a unit; what rounding left over is given out greedily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Name = TypeVar("Name")

# Steps into which a budget is cut: two hundred matrices lose at most 0.2% of it to rounding.
_UNITS = 1 << 17


@dataclass(frozen=True)
class Option:
    """One way to store a matrix."""

    size_bytes: int
    cost: float


def allocate(options: Mapping[Name, Sequence[Option]], budget: int) -> dict[Name, int] | None:
    """The index of the option of each name so that the cost is least and all sizes together are at
    most ``budget`` bytes; ``None`` if the smallest options are too large.

    Optimal when the budget is at most ``_UNITS`` bytes or sizes are multiples of its unit.
    """
    if sum(min(o.size_bytes for o in found) for found in options.values()) > budget:
        return None
    least = {name: _smallest(found) for name, found in options.items()}
    spare = budget - sum(options[name][i].size_bytes for name, i in least.items())
    unit = max(1, -(-spare // _UNITS))
    units = spare // unit
    # best[u]: the least cost so far with u units more than the smallest options; chosen: by what.
    best = np.zeros(units + 1)
    chosen = np.zeros((len(options), units + 1), np.int16)
    for k, (name, found) in enumerate(options.items()):
        before, best = best, np.full(units + 1, np.inf)
        for i, option in enumerate(found):
            more = -(-(option.size_bytes - found[least[name]].size_bytes) // unit)
            if more > units:
                continue
            costs = before[: units + 1 - more] + option.cost
            better = costs < best[more:]
            best[more:][better] = costs[better]
            chosen[k, more:][better] = i
    plan, left = {}, int(np.argmin(best))
    for k, (name, found) in reversed(list(enumerate(options.items()))):
        i = int(chosen[k, left])
        plan[name] = i
        left -= -(-(found[i].size_bytes - found[least[name]].size_bytes) // unit)
    return _repaired(options, {name: plan[name] for name in options}, budget)


def _smallest(options: Sequence[Option]) -> int:
    return min(range(len(options)), key=lambda i: (options[i].size_bytes, options[i].cost))


def _repaired(
    options: Mapping[Name, Sequence[Option]], plan: dict[Name, int], budget: int
) -> dict[Name, int]:
    """``plan`` with the changes of one matrix that gain most for as long as one fits."""
    left = budget - sum(options[name][i].size_bytes for name, i in plan.items())
    while True:
        gains = [
            (options[name][now].cost - option.cost, name, i)
            for name, now in plan.items()
            for i, option in enumerate(options[name])
            if option.size_bytes - options[name][now].size_bytes <= left
        ]
        gain, name, i = max(gains, key=lambda found: found[0])
        if not gain > 0:
            return plan
        left -= options[name][i].size_bytes - options[name][plan[name]].size_bytes
        plan[name] = i
