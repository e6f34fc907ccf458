"""Values, of which a pass is written down, and the operations that give them.

The operations (``x`` is a row of a token; widths are floats a token):

    input       the block's own row                                         first of every block
    embed       row ids[t] of a matrix
    position    row of a matrix for each token's position
    linear      W x, and a bias behind it
    rms_norm    x / sqrt(mean(x^2) + eps) * w, over each of ``heads`` equal parts
    layer_norm  (x - mean(x)) / sqrt(var(x) + eps) * w + b, likewise; b may be absent
    slice       ``width`` columns of x from ``begin`` on
    add, mul    element by element
    silu        x / (1 + exp(-x))
    gelu        x / 2 * (1 + erf(x / sqrt(2)))
    relu        x, or 0 where that is larger
    gelu_tanh   x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    rope        every head turned by its position, halves as pairs (RoFormer, arXiv 2104.09864)
    softcap     cap * tanh(x / cap)
    attention   softmax(scale q k - slope distance) v over the keys up to its own, at most
                ``window`` of them, and over a sink that has a score and no value; stores k and v
                in the layer's cache
    clamped_gate  (up + 1) * gate * sigmoid(alpha gate), gate at most ``limit``, up within it
    route       softmax of a router's logits, zero but for the ``chosen`` largest
    experts     W x of each expert that a route does not leave at zero, side by side
    mix         the experts' outputs, each times its share, added in the order of experts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import FormatError

# Functions of each element by itself, which a gate may be.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")

# The operations: how many values each takes. The only list of them; an interpreter that lacks one
# of these names fails its test.
OPERATIONS: Mapping[str, int] = MappingProxyType(
    {
        "input": 0,
        "embed": 0,
        "position": 0,
        "linear": 1,
        "rms_norm": 1,
        "layer_norm": 1,
        "slice": 1,
        "add": 2,
        "mul": 2,
        **dict.fromkeys(ACTIVATIONS, 1),
        "rope": 1,
        "softcap": 1,
        "attention": 3,
        "clamped_gate": 2,
        "route": 1,
        "experts": 2,
        "mix": 2,
    }
)


# Those that look rows of a matrix up.
LOOKUPS = ("embed", "position")


@dataclass(frozen=True)
class Growth:
    """How much queries grow with their position; see ``RopeTable``."""

    beta: float
    every: int


@dataclass(frozen=True)
class RopeTable:
    """Angles of a rotary embedding: radians a position for each pair of channels.

    frequencies: ``head_dim / 2`` of them; 0: the pair stays as it is. factor: what pairs that turn
    are multiplied by beside (yarn, longrope). longer: the frequencies where a context has room for
    more than ``beyond`` positions (longrope). growth: all pairs are multiplied by
    ``1 + beta * ln(1 + floor(position / every))`` (Llama 4, of queries).
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    longer: tuple[float, ...] | None = None
    beyond: int = 0
    growth: Growth | None = None

    def of_context(self, n_positions: int) -> tuple[float, ...]:
        """The frequencies where there is room for so many positions."""
        if self.longer is not None and n_positions > self.beyond:
            return self.longer
        return self.frequencies


@dataclass(frozen=True, eq=False)
class Value:
    """What one operation gives: ``width`` floats for each token. Immutable.

    attributes: what the operation needs beside its arguments (a weight's name, ``eps``, ...).
    """

    op: str
    args: tuple[Value, ...]
    width: int
    attributes: Mapping[str, Any]

    def __add__(self, other: Value) -> Value:
        return _same_width("add", self, other)

    def __mul__(self, other: Value) -> Value:
        return _same_width("mul", self, other)

    def split(self, *widths: int) -> tuple[Value, ...]:
        """Consecutive columns, ``widths`` of them, which must add up to all."""
        if sum(widths) != self.width or min(widths, default=0) < 1:
            raise FormatError(f"slice: {self.width} columns cannot be cut into {widths}")
        begins = (sum(widths[:i]) for i in range(len(widths)))
        return tuple(
            value_of("slice", (self,), width, begin=begin)
            for begin, width in zip(begins, widths, strict=True)
        )

    def __getitem__(self, name: str) -> Any:
        """An attribute."""
        return self.attributes[name]


def value_of(op: str, args: tuple[Value, ...], width: int, **attributes: Any) -> Value:
    """What ``op`` gives of ``args``."""
    return Value(op, args, width, MappingProxyType(attributes))


def _same_width(op: str, a: Value, b: Value) -> Value:
    if a.width != b.width:
        raise FormatError(f"{op}: {a.width} columns and {b.width}")
    return value_of(op, (a, b), a.width)
