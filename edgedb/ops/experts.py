"""Which experts a token goes to, and what becomes of their outputs, in numpy: the definition.

A *route* is ``[n, experts]`` float32, a token's share in each expert and zero where it does not go;
its *places* are the pairs of a token and an expert that are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .selection import Floats
from .values import Value

Indices = NDArray[np.int64]


def route(logits: Floats, chosen: int, normalized: bool) -> Floats:
    """Shares of ``logits [..., experts]``; see ``Recorder.route``. A NaN counts as larger than any
    number, and every share of its token is NaN where it takes part."""
    found = np.zeros_like(logits)
    order = np.argsort(np.where(np.isnan(logits), -np.inf, -logits), axis=-1, kind="stable")
    largest = order[..., :chosen]
    scores = np.take_along_axis(logits, largest, -1) if normalized else logits
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    np.put_along_axis(
        found, largest, p if normalized else np.take_along_axis(p, largest, -1), axis=-1
    )
    return found


def places(shares: Floats) -> Iterator[tuple[int, Indices, Indices]]:
    """Each expert that some token goes to, in ascending order: its number, the tokens, ascending,
    and for each of them which of its chosen experts this is. ``shares [n, experts]``."""
    goes = shares != 0
    slots = np.cumsum(goes, axis=1) - 1
    for expert in np.flatnonzero(goes.any(axis=0)):
        tokens = np.flatnonzero(goes[:, expert])
        yield int(expert), tokens, slots[tokens, expert]


def inputs(value: Value, x: Floats, tokens: Indices, slots: Indices) -> Floats:
    """What an expert reads at its places, ``[places, cols]``; value: of ``Recorder.experts``."""
    if not value["own"]:
        return x[tokens]
    rows: Floats = x.reshape(len(x), value["chosen"], value["cols"])[tokens, slots]
    return rows


def put(value: Value, out: Floats, tokens: Indices, slots: Indices, y: Floats) -> None:
    """Write ``y [places, rows]`` of an expert to where it belongs in ``out [n, chosen * rows]``."""
    parts, chosen, part = value["parts"], value["chosen"], value["rows"] // value["parts"]
    out.reshape(len(out), parts, chosen, part)[tokens, :, slots] = y.reshape(len(y), parts, part)


def taken(value: Value, out: Floats, tokens: Indices, slots: Indices) -> Floats:
    """What ``put`` wrote there, ``[places, rows]``."""
    rows: Floats = out.reshape(len(out), value["parts"], value["chosen"], -1)[tokens, :, slots]
    return rows.reshape(len(tokens), -1)


def apply(
    value: Value, x: Floats, shares: Floats, multiply: Callable[[int, Floats], Floats], bias: Any
) -> Floats:
    """``Recorder.experts``: ``multiply(expert, rows)`` is ``rows W^T`` of one expert; bias: of all
    experts, one after the other, or None."""
    out = np.zeros((len(x), value.width), x.dtype)
    for expert, tokens, slots in places(shares):
        y = multiply(expert, np.ascontiguousarray(inputs(value, x, tokens, slots)))
        if bias is not None:
            y = y + bias.reshape(value["experts"], -1)[expert]
        put(value, out, tokens, slots, y)
    return out


def mix(y: Floats, shares: Floats, chosen: int) -> Floats:
    """``Recorder.mix``: ``y [n, chosen * width]`` to ``[n, width]``, experts in ascending order."""
    by_slot = y.reshape(len(y), chosen, -1)
    out = np.zeros((len(y), by_slot.shape[2]), y.dtype)
    for expert, tokens, slots in places(shares):
        out[tokens] += shares[tokens, expert, None] * by_slot[tokens, slots]
    return out
