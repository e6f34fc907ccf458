"""What a model computes, written down once: blocks of values, and programs of blocks.

A family (``edgedb/model/families``) says its layer by asking a ``Recorder``; what comes out is data
that every interpreter reads: numpy and numba walk it, the native backend lowers it to one call of
C, the exporter runs it in float32, training as PyTorch modules. None of them knows a family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .sequences import MAX_ROWS
from .values import LOOKUPS, RopeTable, Value


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
