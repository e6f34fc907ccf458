"""How a family says its pass: it asks a recorder for one operation after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FormatError
from .values import ACTIVATIONS, RopeTable, Value, value_of


class Recorder:
    """The operations, as a family asks for them. Weights are named relative to the block.

    eps: of its norms; head_dim: of its attention. Raises ``FormatError`` naming the operation where
    widths do not fit.
    """

    def __init__(self, eps: float, head_dim: int) -> None:
        self._eps, self._head_dim = eps, head_dim

    def input(self, width: int) -> Value:
        return value_of("input", (), width)

    def embed(self, name: str, rows: int, width: int) -> Value:
        """Row ``ids[t]`` of matrix ``name [rows, width]``."""
        return value_of("embed", (), width, matrix=name, rows=rows)

    def position(self, name: str, rows: int, width: int) -> Value:
        """The row of matrix ``name [rows, width]`` for a token's position, from 0 on: a sequence
        has at most ``rows`` tokens."""
        return value_of("position", (), width, matrix=name, rows=rows)

    def linear(self, x: Value, name: str, rows: int, *, bias: bool = False) -> Value:
        """``W x``, W being matrix ``name [rows, x.width]``; with ``bias`` plus ``name.bias``."""
        return value_of("linear", (x,), rows, matrix=name, bias=f"{name}.bias" if bias else None)

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
        return value_of(op, (x,), x.width, weight=name, heads=heads, eps=self._eps, **more)

    def silu(self, x: Value) -> Value:
        return self.activation("silu", x)

    def gelu_tanh(self, x: Value) -> Value:
        return self.activation("gelu_tanh", x)

    def activation(self, name: str, x: Value) -> Value:
        """One of ``ACTIVATIONS``."""
        if name not in ACTIVATIONS:
            raise FormatError(f"{name}: expected one of {', '.join(ACTIVATIONS)}")
        return value_of(name, (x,), x.width)

    def rope(self, x: Value, heads: int, table: RopeTable) -> Value:
        """Each of ``heads`` heads turned by its token's position."""
        head_dim = 2 * len(table.frequencies)
        if x.width != heads * head_dim:
            raise FormatError(f"rope: {x.width} columns are not {heads} heads of {head_dim}")
        return value_of("rope", (x,), x.width, table=table, heads=heads)

    def softcap(self, x: Value, cap: float) -> Value:
        return value_of("softcap", (x,), x.width, cap=cap)

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
        return value_of(
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
        return value_of("clamped_gate", (gate, up), up.width, alpha=alpha, limit=limit)

    def route(self, logits: Value, chosen: int, *, normalized: bool) -> Value:
        """A token's share in each expert, of ``logits`` one for each: zero but for the ``chosen``
        largest (of equal ones the first). normalized: the shares add up to 1, as if there were no
        other experts; else they are what a softmax over all gives them."""
        if not 1 <= chosen <= logits.width:
            raise FormatError(f"route: {chosen} of {logits.width} experts")
        return value_of("route", (logits,), logits.width, chosen=chosen, normalized=normalized)

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
        return value_of(
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
        return value_of("mix", (y, route), y.width // route["chosen"])
