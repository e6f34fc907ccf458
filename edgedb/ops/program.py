"""What a model computes, written down once: values, blocks and programs.

A family (``edgedb/model/families``) says its layer by asking a ``Recorder``; what comes out is data
that every interpreter reads: numpy and numba walk it, the native backend lowers it to one call of
C, the exporter runs it in float32, training as PyTorch modules. None of them knows a family.

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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import FormatError
from .sequences import MAX_ROWS

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
            _value("slice", (self,), width, begin=begin)
            for begin, width in zip(begins, widths, strict=True)
        )

    def __getitem__(self, name: str) -> Any:
        """An attribute."""
        return self.attributes[name]


def _value(op: str, args: tuple[Value, ...], width: int, **attributes: Any) -> Value:
    return Value(op, args, width, MappingProxyType(attributes))


def _same_width(op: str, a: Value, b: Value) -> Value:
    if a.width != b.width:
        raise FormatError(f"{op}: {a.width} columns and {b.width}")
    return _value(op, (a, b), a.width)


class Recorder:
    """The operations, as a family asks for them. Weights are named relative to the block.

    eps: of its norms; head_dim: of its attention. Raises ``FormatError`` naming the operation where
    widths do not fit.
    """

    def __init__(self, eps: float, head_dim: int) -> None:
        self._eps, self._head_dim = eps, head_dim

    def input(self, width: int) -> Value:
        return _value("input", (), width)

    def embed(self, name: str, rows: int, width: int) -> Value:
        """Row ``ids[t]`` of matrix ``name [rows, width]``."""
        return _value("embed", (), width, matrix=name, rows=rows)

    def position(self, name: str, rows: int, width: int) -> Value:
        """The row of matrix ``name [rows, width]`` for a token's position, from 0 on: a sequence
        has at most ``rows`` tokens."""
        return _value("position", (), width, matrix=name, rows=rows)

    def linear(self, x: Value, name: str, rows: int, *, bias: bool = False) -> Value:
        """``W x``, W being matrix ``name [rows, x.width]``; with ``bias`` plus ``name.bias``."""
        return _value("linear", (x,), rows, matrix=name, bias=f"{name}.bias" if bias else None)

    def rms_norm(self, x: Value, name: str, *, heads: int = 1) -> Value:
        """Each of ``heads`` equal parts of x over its root mean square, times ``name``."""
        return self._norm("rms_norm", x, name, heads)

    def layer_norm(self, x: Value, name: str, *, heads: int = 1, bias: bool = True) -> Value:
        """Each of ``heads`` equal parts of x less its mean, over its standard deviation, times
        ``name``; with ``bias`` plus ``name.bias``."""
        return self._norm("layer_norm", x, name, heads, bias=f"{name}.bias" if bias else None)

    def _norm(self, op: str, x: Value, name: str, heads: int, **more: Any) -> Value:
        if x.width % heads:
            raise FormatError(f"{op} {name}: {x.width} columns are not {heads} equal heads")
        return _value(op, (x,), x.width, weight=name, heads=heads, eps=self._eps, **more)

    def silu(self, x: Value) -> Value:
        return self.activation("silu", x)

    def gelu_tanh(self, x: Value) -> Value:
        return self.activation("gelu_tanh", x)

    def activation(self, name: str, x: Value) -> Value:
        """One of ``ACTIVATIONS``."""
        if name not in ACTIVATIONS:
            raise FormatError(f"{name}: expected one of {', '.join(ACTIVATIONS)}")
        return _value(name, (x,), x.width)

    def rope(self, x: Value, heads: int, table: RopeTable) -> Value:
        """Each of ``heads`` heads turned by its token's position."""
        head_dim = 2 * len(table.frequencies)
        if x.width != heads * head_dim:
            raise FormatError(f"rope: {x.width} columns are not {heads} heads of {head_dim}")
        return _value("rope", (x,), x.width, table=table, heads=heads)

    def softcap(self, x: Value, cap: float) -> Value:
        return _value("softcap", (x,), x.width, cap=cap)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        scale: float | None = None,
        window: int | None = None,
        slopes: tuple[float, ...] | None = None,
        sinks: str | None = None,
        cap: float | None = None,
    ) -> Value:
        """Heads' outputs side by side. ``scale``: by default ``1 / sqrt(head_dim)``; ``window``:
        how many keys a query sees, its own included; None: all; ``slopes``: for each head, what a
        score loses for each position between query and key (ALiBi, arXiv 2108.12409); ``sinks``:
        name of a score for each head that takes part in the softmax, as of a key whose value is
        zero; ``cap``: of the scaled scores, which become ``cap * tanh(score / cap)``."""
        head_dim = self._head_dim
        if scale is None:
            scale = float(np.float32(1) / np.sqrt(np.float32(head_dim)))  # each step in float32
        n_heads, n_kv_heads = q.width // head_dim, k.width // head_dim
        fits = q.width == n_heads * head_dim and k.width == v.width == n_kv_heads * head_dim
        if not fits or not n_kv_heads or n_heads % n_kv_heads:
            raise FormatError(
                f"attention: q, k, v of {q.width}, {k.width}, {v.width} columns are not heads "
                f"of {head_dim}"
            )
        if slopes is not None and len(slopes) != n_heads:
            raise FormatError(f"attention: {len(slopes)} slopes for {n_heads} heads")
        return _value(
            "attention",
            (q, k, v),
            q.width,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            scale=scale,
            window=window,
            slopes=slopes,
            sinks=sinks,
            cap=cap,
        )

    def clamped_gate(self, gate: Value, up: Value, alpha: float, limit: float) -> Value:
        """gpt-oss's gate: ``(u + 1) g / (1 + exp(-alpha g))``, g being ``gate`` or ``limit`` if
        that is less, u ``up`` within ``limit`` both ways."""
        if gate.width != up.width:
            raise FormatError(f"clamped_gate: {gate.width} columns and {up.width}")
        return _value("clamped_gate", (gate, up), up.width, alpha=alpha, limit=limit)

    def route(self, logits: Value, chosen: int, *, normalized: bool) -> Value:
        """A token's share in each expert, of ``logits`` one for each: zero but for the ``chosen``
        largest (of equal ones the first). normalized: the shares add up to 1, as if there were no
        other experts; else they are what a softmax over all gives them."""
        if not 1 <= chosen <= logits.width:
            raise FormatError(f"route: {chosen} of {logits.width} experts")
        return _value("route", (logits,), logits.width, chosen=chosen, normalized=normalized)

    def experts(
        self,
        x: Value,
        route: Value,
        name: str,
        rows: int,
        *,
        own: bool = False,
        parts: int = 1,
        bias: bool = False,
    ) -> Value:
        """``W x`` of each chosen expert, side by side in the order of experts; W is one of the
        stack ``name``, ``rows`` rows each. With ``bias`` plus its ``rows`` of ``name.bias``.

        own: ``x`` holds such columns for each chosen expert, else all take the same. parts: the
        rows are so many equal parts (gate and up), and the first part of all experts comes before
        the second.
        """
        chosen = route["chosen"]
        if rows % parts or (own and x.width % chosen):
            raise FormatError(f"experts {name}: {rows} rows in {parts} parts of {x.width} columns")
        return _value(
            "experts",
            (x, route),
            chosen * rows,
            matrix=name,
            bias=f"{name}.bias" if bias else None,
            rows=rows,
            cols=x.width // chosen if own else x.width,
            own=own,
            parts=parts,
            experts=route.width,
            chosen=chosen,
        )

    def mix(self, y: Value, route: Value) -> Value:
        """The chosen experts' outputs ``y``, each times its share in ``route``, added up."""
        if y.width % route["chosen"]:
            raise FormatError(f"mix: {y.width} columns are not {route['chosen']} experts'")
        return _value("mix", (y, route), y.width // route["chosen"])


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of a pass: from its input's row to its output's, with weights named within it."""

    output: Value

    @cached_property
    def operations(self) -> tuple[Value, ...]:
        """All values, arguments before those who read them, in the order they are read aloud."""
        found: dict[Value, None] = {}

        def visit(value: Value) -> None:
            if value not in found:
                for argument in value.args:
                    visit(argument)
                found[value] = None

        visit(self.output)
        return tuple(found)

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> ``(rows, cols)`` of every matrix, of a stack those of one expert's, in the order
        of use."""
        shapes: dict[str, tuple[int, int]] = {}
        for value in self.operations:
            if value.op == "linear":
                shapes.setdefault(value["matrix"], (value.width, value.args[0].width))
            elif value.op in LOOKUPS:
                shapes.setdefault(value["matrix"], (value["rows"], value.width))
            elif value.op == "experts":
                shapes.setdefault(value["matrix"], (value["rows"], value["cols"]))
        return shapes

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Which of the matrices are stacks, one for each expert: name -> how many."""
        return {v["matrix"]: v["experts"] for v in self.operations if v.op == "experts"}

    @cached_property
    def vectors(self) -> dict[str, int]:
        """Name -> length of every norm's weights and every bias, in the order of use."""
        lengths: dict[str, int] = {}
        for value in self.operations:
            if value.op == "experts" and value["bias"] is not None:
                lengths.setdefault(value["bias"], value["experts"] * value["rows"])
                continue
            if value.op == "attention":
                if value["sinks"] is not None:
                    lengths.setdefault(value["sinks"], value["n_heads"])
                continue
            length = value.width // value.attributes.get("heads", 1)
            for kind in ("weight", "bias"):
                if (name := value.attributes.get(kind)) is not None:
                    lengths.setdefault(name, length)
        return lengths

    def readers(self, value: Value) -> list[Value]:
        """The operations that take ``value`` as an argument; the output is read from outside."""
        return [user for user in self.operations for argument in user.args if argument is value]

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """Equal for blocks that compute the same from weights of the same names."""
        number = {value: i for i, value in enumerate(self.operations)}
        return tuple(
            (v.op, tuple(number[a] for a in v.args), v.width, tuple(v.attributes.items()))
            for v in self.operations
        )

    def text(self) -> str:
        """The operations, a line each, for people."""
        number = {value: i for i, value in enumerate(self.operations)}
        rows = []
        for value, i in number.items():
            words = [value.op, *(f"%{number[argument]}" for argument in value.args)]
            words += [text for key in value.attributes if (text := _attribute(value, key))]
            rows.append(f"%{i:<3} {' '.join(words):<60} {value.width:>7}")
        return "\n".join(rows)


def _attribute(value: Value, key: str) -> str:
    content = value.attributes[key]
    if content is None:
        return ""
    if key in ("matrix", "weight"):
        return str(content)
    if isinstance(content, RopeTable):
        shown = _rope_text(content)
    elif isinstance(content, tuple):
        shown = f"{max(content):.6g} to {min(content):.6g}"
    else:
        shown = f"{content:.6g}" if isinstance(content, float) else str(content)
    return f"{key}={shown}"


def _rope_text(table: RopeTable) -> str:
    turning = [f for f in table.frequencies if f] or [0.0]
    words = [f"{max(turning):.6g} to {min(turning):.6g}"]
    if len(turning) < len(table.frequencies):
        words.append(f"of {len(turning)} pairs")
    if table.factor != 1:
        words.append(f"times {table.factor:.6g}")
    if table.longer is not None:
        words.append(f"others beyond {table.beyond}")
    if table.growth is not None:
        words.append("growing")
    return " ".join(words)


@dataclass(frozen=True)
class Program:
    """A model's whole pass in four parts.

    first: ids to the residual stream; layers, which take that stream and give it back: the
    distinct ``kinds``, and for each layer the index of its kind; final: what comes before the
    head, which gives logits.
    """

    first: Block
    kinds: tuple[Block, ...]
    layers: tuple[int, ...]
    final: Block
    head: Block

    @property
    def width(self) -> int:
        """Columns of the residual stream."""
        return self.first.output.width

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Every block in the order of a pass, and what its weights' names begin with."""
        yield "", self.first
        for i, kind in enumerate(self.layers):
            yield f"layers.{i}.", self.kinds[kind]
        yield "", self.final
        yield "", self.head

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> ``(rows, cols)`` of every matrix of the model, of a stack those of one expert's,
        in the order of a pass."""
        return {p + n: shape for p, block in self.blocks() for n, shape in block.matrices.items()}

    def stacks(self) -> dict[str, int]:
        """Which of the matrices are stacks, one for each expert: name -> how many."""
        return {p + n: count for p, block in self.blocks() for n, count in block.stacks.items()}

    def sizes(self) -> dict[str, int]:
        """Name -> weights of every matrix, of a stack of all experts together."""
        stacks = self.stacks()
        return {n: rows * cols * stacks.get(n, 1) for n, (rows, cols) in self.matrices().items()}

    def vectors(self) -> dict[str, int]:
        """Name -> length of every norm's weights and every bias, in the order of a pass."""
        return {p + n: length for p, block in self.blocks() for n, length in block.vectors.items()}

    def attentions(self) -> list[Value]:
        """The attention of each layer: what its cache holds."""
        found = {}
        for i, block in enumerate(self.kinds):
            (found[i],) = [value for value in block.operations if value.op == "attention"]
        return [found[kind] for kind in self.layers]

    def tables(self) -> list[str]:
        """The matrices whose rows are looked up, and that of the head: each once."""
        found = [v["matrix"] for v in self.first.operations if v.op in LOOKUPS]
        return list(dict.fromkeys([*found, *self.head.matrices]))

    def positions(self) -> int | None:
        """How many positions there are at most, where each has a row of a matrix."""
        rows = [v["rows"] for v in self.first.operations if v.op == "position"]
        return min(rows, default=None)

    def ropes(self) -> list[RopeTable]:
        """Every table once."""
        tables = [v["table"] for block in self.kinds for v in block.operations if v.op == "rope"]
        return list(dict.fromkeys(tables))

    def session_bytes(self, context: int) -> int:
        """Bytes that a session of so many positions takes beside the weights, about: every value of
        a pass for ``MAX_ROWS`` tokens, a full float16 cache, and the rotary tables."""
        blocks = (self.first, *self.kinds, self.final, self.head)
        widths = sum(v.width for b in blocks for v in b.operations if v.op != "slice")
        rows = sum(2 * a["n_kv_heads"] * a["head_dim"] for a in self.attentions())
        tables = sum(2 * len(table.frequencies) for table in self.ropes())
        return 4 * MAX_ROWS * widths + (2 * rows + 4 * tables) * context

    def text(self) -> str:
        """The program for people: every block once, with the layers that it is."""
        parts = [("first", self.first)]
        for i, block in enumerate(self.kinds):
            which = [layer for layer, kind in enumerate(self.layers) if kind == i]
            parts.append((f"layers {_runs(which)}", block))
        parts += [("final", self.final), ("head", self.head)]
        return "\n\n".join(f"{title}\n{block.text()}" for title, block in parts)


def distinct(layers: Sequence[Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """``kinds`` and ``layers`` of a ``Program``: blocks that compute the same are one."""
    kinds: dict[tuple[Any, ...], Block] = {}
    for block in layers:
        kinds.setdefault(block.signature, block)
    numbers = {signature: i for i, signature in enumerate(kinds)}
    return tuple(kinds.values()), tuple(numbers[block.signature] for block in layers)


def _runs(numbers: Sequence[int]) -> str:
    """``0-3, 7``: ascending numbers, neighbours joined."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
