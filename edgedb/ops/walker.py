"""A program run as it is recorded, one operation after the other, for numpy and numba.

Nothing is fused and every value is an array of its own: with ``reference`` this defines what a
program means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..format.tensors import Experts
from . import experts
from .buffer import Buffer
from .functions import softcap
from .pages import CacheLayer
from .program import Block, Program
from .selection import Floats
from .sequences import Span
from .values import ACTIVATIONS, Value
from .weights import Weights


class Operations(Protocol):
    """What a backend offers a walker. Arrays are float32 ``[n, width]``, a row one token."""

    def wrap(self, array: np.ndarray) -> Buffer:
        """An existing array, not copied."""

    def matrix(self, tensor: Any) -> Any:
        """A weight matrix prepared for ``embed`` and ``linear``."""

    def embed(self, matrix: Any, ids: np.ndarray) -> Floats:
        """Rows ``ids`` of a matrix."""

    def linear(self, matrix: Any, x: Floats) -> Floats:
        """``W x``."""

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """``x / sqrt(mean(x^2) + eps) * weight`` along the last axis of ``x [rows, size]``."""

    def layer_norm(self, x: Floats, weight: Floats, shift: Floats, eps: float) -> Floats:
        """``(x - mean(x)) / sqrt(var(x) + eps) * weight + shift``, likewise."""

    def activate(self, name: str, x: Floats) -> Floats:
        """One of ``ACTIVATIONS``, element by element."""

    def rope(self, x: Floats, cos: Floats, sin: Floats) -> Floats:
        """``x [n, heads, dim]`` turned; cos and sin of its rows, ``[n, dim / 2]``. Channel i turns
        with channel ``i + dim / 2``."""

    def attention(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cache: CacheLayer,
        position: int,
        value: Value,
        sinks: Floats | None,
    ) -> Floats:
        """Store k and v at ``position`` and on, and attend to what ``value`` lets q see; ``sinks``
        is a score for each head, or None."""

    def clamped_gate(self, gate: Floats, up: Floats, alpha: float, limit: float) -> Floats:
        """See ``Recorder.clamped_gate``."""


class WalkerState:
    """Where a pass has come to."""

    def __init__(self) -> None:
        self.x = np.empty((0, 0), np.float32)

    size_bytes = 0


class Walker:
    """A program with its weights on a backend's operations. Immutable: threads share one."""

    def __init__(self, program: Program, weights: Weights, ops: Operations) -> None:
        self.program, self._ops = program, ops
        self._tables = weights.tables
        self._vectors = weights.vectors
        self._matrices = {
            name: [ops.matrix(weight[i]) for i in range(len(weight))]
            if isinstance(weight, Experts)
            else ops.matrix(weight)
            for name, weight in weights.linears.items()
        }

    def state(self) -> WalkerState:
        """What one running pass needs."""
        return WalkerState()

    def read(self, state: WalkerState, ids: Sequence[int], spans: Sequence[Span]) -> None:
        """``first`` and all layers for ``ids``, the rows of ``spans``, one span after the other."""
        rows, start = [], 0
        tokens = np.asarray(ids, np.int32)
        for span in spans:
            given = tokens[start : start + span.n]
            x = self._run(self.program.first, "", ids=given, position=span.position)
            for i, kind in enumerate(self.program.layers):
                layer = span.cache.table.layer(i)
                block = self.program.kinds[kind]
                x = self._run(block, f"layers.{i}.", x, layer=layer, position=span.position)
            rows.append(x)
            start += span.n
        state.x = np.concatenate(rows)

    def hidden(self, state: WalkerState, start: int, n: int) -> Buffer:
        """Rows ``start`` to ``start + n`` of the residual stream through ``final``."""
        return self._ops.wrap(self._run(self.program.final, "", state.x[start : start + n]))

    def gather(self, state: WalkerState, rows: Sequence[int]) -> None:
        """Move rows of the pass, in ascending order, to its beginning."""
        state.x = state.x[list(rows)]

    def logits(self, state: WalkerState, start: int, n: int, out: Buffer | None = None) -> Floats:
        """The same rows through ``final`` and ``head``, ``[n, vocabulary]``."""
        found = self._run(self.program.head, "", self.hidden(state, start, n).array)
        if out is None:
            return found
        out.array[...] = found
        return out.array

    def _run(self, block: Block, prefix: str, x: Floats | None = None, **where: Any) -> Floats:
        found: dict[Value, Any] = {}
        for value in block.operations:
            arguments = [found[argument] for argument in value.args]
            found[value] = x if value.op == "input" else self._do(value, prefix, arguments, where)
        out: Floats = found[block.output]
        return out

    def _do(
        self, value: Value, prefix: str, args: list[Floats], where: Mapping[str, Any]
    ) -> Floats:
        ops, op = self._ops, value.op
        if op == "embed":
            return ops.embed(self._matrices[prefix + value["matrix"]], where["ids"])
        if op == "position":
            positions = np.arange(len(where["ids"]), dtype=np.int32) + where["position"]
            return ops.embed(self._matrices[prefix + value["matrix"]], positions)
        if op == "linear":
            y = ops.linear(self._matrices[prefix + value["matrix"]], args[0])
            return y if value["bias"] is None else y + self._vectors[prefix + value["bias"]]
        if op == "rms_norm":
            heads = args[0].reshape(-1, value.width // value["heads"])
            weight = self._vectors[prefix + value["weight"]]
            return ops.rms_norm(heads, weight, value["eps"]).reshape(args[0].shape)
        if op == "layer_norm":
            heads = args[0].reshape(-1, value.width // value["heads"])
            weight = self._vectors[prefix + value["weight"]]
            shift = np.zeros_like(weight)
            if value["bias"] is not None:
                shift = self._vectors[prefix + value["bias"]]
            return ops.layer_norm(heads, weight, shift, value["eps"]).reshape(args[0].shape)
        if op == "slice":
            return np.ascontiguousarray(args[0][:, value["begin"] : value["begin"] + value.width])
        if op == "add":
            return args[0] + args[1]
        if op == "mul":
            return args[0] * args[1]
        if op in ACTIVATIONS:
            return ops.activate(op, args[0])
        if op == "softcap":
            return softcap(args[0], value["cap"])
        if op == "rope":
            table = self._tables[value["table"]]
            rows = slice(where["position"], where["position"] + len(args[0]))
            per_head = args[0].reshape(len(args[0]), value["heads"], -1)
            return ops.rope(per_head, table.cos[rows], table.sin[rows]).reshape(args[0].shape)
        if op == "attention":
            q, k, v = args
            sinks = None if value["sinks"] is None else self._vectors[prefix + value["sinks"]]
            return ops.attention(q, k, v, where["layer"], where["position"], value, sinks)
        if op == "clamped_gate":
            return ops.clamped_gate(args[0], args[1], value["alpha"], value["limit"])
        if op == "route":
            return experts.route(args[0], value["chosen"], value["normalized"])
        if op == "experts":
            stack = self._matrices[prefix + value["matrix"]]
            bias = None if value["bias"] is None else self._vectors[prefix + value["bias"]]
            x, shares = args
            return experts.apply(value, x, shares, lambda i, x: ops.linear(stack[i], x), bias)
        if op == "mix":
            y, shares = args
            return experts.mix(y, shares, value.args[1]["chosen"])
        raise NotImplementedError(f"operation {op}")
