"""Backwards through a program: what a change of any value does to the loss at the end, in float32.

The adjoint of ``forward``: the vector-Jacobian product of every operation, a block at a time.
Weights get no gradient. What a matrix is multiplied with, and the gradient of what it gives, are
told to the caller, who makes of them what an error of its weights costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..ops import experts
from ..ops.functions import SLOPES, clamped_gate_slopes, softcap, softcap_slope
from ..ops.program import Block
from ..ops.values import ACTIVATIONS, Value
from .forward import Float32Program, attention_weights, sinks_of, softmax

Float32 = NDArray[np.float32]

# Called for each matrix with its name, its inputs [sequences, tokens, cols] and the gradient of its
# outputs [sequences, tokens, rows]; of a stack for each expert that some token goes to.
Seen = Callable[[str, Float32, Float32], None]


def ignore(name: str, x: Float32, gradient: Float32) -> None:
    """A ``Seen`` for who wants the gradient of the input alone."""


class Adjoint:
    """Of the blocks that ``forward`` runs."""

    def __init__(self, forward: Float32Program) -> None:
        self.forward = forward

    def block(
        self,
        block: Block,
        x: Float32,
        gradient: Float32,
        vectors: Mapping[str, Float32],
        weights: Mapping[str, Float32],
        seen: Seen = ignore,
    ) -> Float32:
        """The gradient of the block's first value ``x [sequences, tokens, width]`` (see
        ``Float32Program.values``) from that of its output. Every value of the block is in memory at
        once: pass few sequences at a time."""
        return self.back(
            block, self.forward.values(block, x, vectors, weights), gradient, vectors, weights, seen
        )

    def back(
        self,
        block: Block,
        values: Mapping[Value, Float32],
        gradient: Float32,
        vectors: Mapping[str, Float32],
        weights: Mapping[str, Float32],
        seen: Seen = ignore,
    ) -> Float32:
        """``block``, whose ``values`` are there already."""
        gradients = {v: np.zeros_like(values[v]) for v in block.operations}
        gradients[block.output] += gradient
        for value in reversed(block.operations[1:]):
            g = gradients.pop(value)
            if value.op == "linear":
                seen(value["matrix"], values[value.args[0]], g)
            elif value.op == "experts":
                x, shares = values[value.args[0]], values[value.args[1]]
                gradients[value.args[0]] += _experts(
                    value, x, shares, g, weights[value["matrix"]], seen
                )
                continue
            if value.op == "slice":  # most of its argument's gradient is not its own
                begin = value["begin"]
                gradients[value.args[0]][..., begin : begin + value.width] += g
                continue
            args = [values[argument] for argument in value.args]
            parts = self._product(value, args, g, vectors, weights)
            for argument, part in zip(value.args, parts, strict=True):
                gradients[argument] += part
        return gradients[block.operations[0]]

    def _product(
        self,
        value: Value,
        args: list[Float32],
        g: Float32,
        vectors: Mapping[str, Float32],
        weights: Mapping[str, Float32],
    ) -> list[Float32]:
        """What the gradient ``g`` of one operation says of each of its arguments."""
        op = value.op
        if op == "position":
            return []
        if op == "linear":
            back: Float32 = g @ weights[value["matrix"]]
            return [back]
        if op == "rms_norm":
            return [_rms_norm(value, args[0], g, vectors[value["weight"]])]
        if op == "layer_norm":
            return [_layer_norm(value, args[0], g, vectors[value["weight"]])]
        if op == "add":
            return [g, g]
        if op == "mul":
            return [g * args[1], g * args[0]]
        if op in ACTIVATIONS:
            return [g * SLOPES[op](args[0])]
        if op == "rope":
            heads = g.reshape(*g.shape[:2], value["heads"], -1)
            return [self.forward.turned(heads, value["table"], back=True).reshape(g.shape)]
        if op == "softcap":
            return [g * softcap_slope(softcap(args[0], value["cap"]), value["cap"])]
        if op == "attention":
            sinks = sinks_of(value, vectors)
            rows = [_attention(value, sinks, *row) for row in zip(*args, g, strict=True)]
            return [np.stack(part) for part in zip(*rows, strict=True)]
        if op == "clamped_gate":
            slopes = clamped_gate_slopes(args[0], args[1], value["alpha"], value["limit"])
            return [g * slope for slope in slopes]
        if op == "route":
            return [_route(value, args[0], g)]
        if op == "mix":
            return _mix(value, args[0], args[1], g)
        raise NotImplementedError(f"operation {op}")


def _layer_norm(value: Value, x: Float32, g: Float32, weight: Float32) -> Float32:
    """A mean taken away is its own adjoint; between the two it is the other norm."""
    heads = x.reshape(*x.shape[:2], value["heads"], -1)
    centered = heads - heads.mean(-1, keepdims=True)
    back = _rms_norm(value, centered.reshape(x.shape), g, weight).reshape(heads.shape)
    return (back - back.mean(-1, keepdims=True)).reshape(x.shape)


def _rms_norm(value: Value, x: Float32, g: Float32, weight: Float32) -> Float32:
    heads = x.reshape(*x.shape[:2], value["heads"], -1)
    g = g.reshape(heads.shape) * weight
    inverse = 1 / np.sqrt(np.square(heads).mean(-1, keepdims=True) + np.float32(value["eps"]))
    along = (g * heads).mean(-1, keepdims=True)
    out: Float32 = inverse * (g - heads * (along * np.square(inverse)))
    return out.reshape(x.shape)


def _attention(
    value: Value, sinks: Float32 | None, q: Float32, k: Float32, v: Float32, g: Float32
) -> tuple[Float32, Float32, Float32]:
    """Of one sequence ``[tokens, width]``, one key/value head at a time, as the pass itself."""
    n, dim = len(q), value["head_dim"]
    scale = np.float32(value["scale"])
    queries, mixed = (x.reshape(n, value["n_kv_heads"], -1, dim) for x in (q, g))
    keys, values = (x.reshape(n, -1, dim) for x in (k, v))
    out = [np.empty_like(x) for x in (queries, keys, values)]
    for head, (weights, slope) in enumerate(attention_weights(value, q, k, sinks)):
        gradient = mixed[:, head].swapaxes(0, 1)
        out[2][:, head] = np.einsum("hij,hid->jd", weights, gradient, optimize=True)
        scores = gradient @ values[:, head].T
        scores -= (scores * weights).sum(-1, keepdims=True)
        scores *= weights  # [queries a head, n, n]
        if slope is not None:
            scores *= slope
        scores *= scale
        out[0][:, head] = (scores @ keys[:, head]).swapaxes(0, 1)
        own = queries[:, head].swapaxes(0, 1)
        out[1][:, head] = np.einsum("hij,hid->jd", scores, own, optimize=True)
    return out[0].reshape(q.shape), out[1].reshape(k.shape), out[2].reshape(v.shape)


def _route(value: Value, logits: Float32, g: Float32) -> Float32:
    """Of a softmax over the chosen, or over all of which the chosen are taken; the choice itself
    has no gradient."""
    chosen, normalized = value["chosen"], value["normalized"]
    shares = experts.route(logits, chosen, normalized)
    weights = shares if normalized else softmax(logits.copy())
    g = np.where(shares != 0, g, 0)
    out: Float32 = weights * (g - (g * weights).sum(-1, keepdims=True))
    return out


def _experts(
    value: Value, x: Float32, shares: Float32, g: Float32, stack: Float32, seen: Seen
) -> Float32:
    """Of what the experts read; each tells ``seen`` its own rows, as one sequence."""
    flat, shares, g = (a.reshape(-1, a.shape[-1]) for a in (x, shares, g))
    out = np.zeros_like(flat)
    own = out.reshape(len(flat), -1, value["cols"])  # a part for each slot, or one for all
    for expert, tokens, slots in experts.places(shares):
        back = experts.taken(value, g, tokens, slots)
        seen(value["matrix"], experts.inputs(value, flat, tokens, slots)[None], back[None])
        own[tokens, slots if value["own"] else 0] += back @ stack[expert]
    return out.reshape(x.shape)


def _mix(value: Value, y: Float32, shares: Float32, g: Float32) -> list[Float32]:
    by_slot = y.reshape(-1, value.args[1]["chosen"], value.width)
    flat_shares, flat_g = shares.reshape(-1, shares.shape[-1]), g.reshape(-1, value.width)
    of_y, of_shares = np.zeros_like(by_slot), np.zeros_like(flat_shares)
    for expert, tokens, slots in experts.places(flat_shares):
        of_y[tokens, slots] = flat_shares[tokens, expert, None] * flat_g[tokens]
        of_shares[tokens, expert] = (by_slot[tokens, slots] * flat_g[tokens]).sum(-1)
    return [of_y.reshape(y.shape), of_shares.reshape(shares.shape)]
