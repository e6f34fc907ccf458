"""A program in PyTorch, one operation after the other: for training, and for the text to train on.

Values are ``[batch, tokens, width]``. The residual stream, norms and rotary turns are float32; what
a matrix gives has the type that it runs in (bfloat16 under autocast), until it is added to the
stream. ``torch.compile`` follows the walk while it traces: a compiled block is one graph, and
nothing of the recording is left in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgedb.model.rope import RopeTables
from edgedb.ops.program import Block
from edgedb.ops.values import RopeTable


class Turns(NamedTuple):
    """Where the tokens of a pass stand: their positions, int64 ``[tokens]``, and cos and sin of
    each of the program's rotary tables there, float32 ``[tokens, 1, head_dim / 2]``."""

    positions: Tensor
    tables: tuple[tuple[Tensor, Tensor], ...]


class Attend(Protocol):
    """How ``attention`` is interpreted: over whole sequences, or with a cache."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, own: Mapping[str, Any], sinks: Tensor | None
    ) -> Tensor:
        """q ``[batch, tokens, n_heads, head_dim]``, k and v with ``n_kv_heads``; as q. own: the
        operation's attributes; sinks: ``[n_heads]``, scores of keys whose values are zero."""


class Step(NamedTuple):
    """An operation, its arguments by their numbers, and its attributes.

    Plain containers: values of a recording are known by identity, which ``torch.compile`` does not
    follow.
    """

    do: Callable[..., Tensor]
    arguments: tuple[int, ...]
    attributes: Mapping[str, Any]


class Where(NamedTuple):
    """What a block is run with; weights have the names that they have within it."""

    weights: Mapping[str, Tensor | nn.Module]
    turns: Turns
    attend: Attend


def steps_of(block: Block, ropes: Sequence[RopeTable]) -> tuple[Step, ...]:
    """A block as ``interpret`` runs it; rotary tables become their places in ``ropes``."""
    number = {value: i for i, value in enumerate(block.operations)}
    steps = []
    for value in block.operations:
        own = {**value.attributes, "width": value.width}
        if value.op == "rope":
            own["table"] = ropes.index(value["table"])
        arguments = tuple(number[argument] for argument in value.args)
        steps.append(Step(OPERATIONS[value.op], arguments, own))
    return tuple(steps)


def interpret(steps: Sequence[Step], where: Where, x: Tensor) -> Tensor:
    """What the block gives for its input ``x``; that of an ``embed`` is ids ``[batch, tokens]``."""
    return values(steps, where, x)[-1]


def values(steps: Sequence[Step], where: Where, x: Tensor) -> list[Tensor]:
    """All that is computed on the way, a value for each operation."""
    found: list[Tensor] = []
    for do, arguments, own in steps:
        found.append(do(own, where, *[found[i] for i in arguments] or [x]))
    return found


def _input(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return x


def _embed(own: Mapping[str, Any], where: Where, ids: Tensor) -> Tensor:
    return F.embedding(ids, where.weights[own["matrix"]]).float()


def _position(own: Mapping[str, Any], where: Where, ids: Tensor) -> Tensor:
    return F.embedding(where.turns.positions, where.weights[own["matrix"]]).float()


def _linear(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    y = where.weights[own["matrix"]](x)
    return y if own["bias"] is None else y + where.weights[own["bias"]].to(y.dtype)


def _rms_norm(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    heads = x.float().unflatten(-1, (own["heads"], -1))
    weight = where.weights[own["weight"]]
    return F.rms_norm(heads, weight.shape, weight, own["eps"]).flatten(-2)


def _layer_norm(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    heads = x.float().unflatten(-1, (own["heads"], -1))
    weight = where.weights[own["weight"]]
    shift = None if own["bias"] is None else where.weights[own["bias"]]
    return F.layer_norm(heads, weight.shape, weight, shift, own["eps"]).flatten(-2)


def _slice(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return x.narrow(-1, own["begin"], own["width"])


def _add(own: Mapping[str, Any], where: Where, x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _mul(own: Mapping[str, Any], where: Where, x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _silu(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return F.silu(x)


def _gelu_tanh(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return F.gelu(x)


def _relu(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return F.relu(x)


def _rope(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    cos, sin = where.turns.tables[own["table"]]
    first, second = x.float().unflatten(-1, (own["heads"], -1)).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2)


def _softcap(own: Mapping[str, Any], where: Where, x: Tensor) -> Tensor:
    return softcap(x, own["cap"])


def _attention(own: Mapping[str, Any], where: Where, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.to(v.dtype).unflatten(-1, (-1, own["head_dim"])) for x in (q, k, v))
    sinks = None if own["sinks"] is None else where.weights[own["sinks"]]
    return where.attend(q, k, v, own, sinks).flatten(-2)


def _clamped_gate(own: Mapping[str, Any], where: Where, gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=own["limit"]), up.clamp(-own["limit"], own["limit"])
    return gate * torch.sigmoid(own["alpha"] * gate) * (up + 1)


def _route(own: Mapping[str, Any], where: Where, logits: Tensor) -> Tensor:
    logits = logits.float()
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., : own["chosen"]]
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, True)
    if own["normalized"]:
        return logits.masked_fill(~chosen, -torch.inf).softmax(-1)
    return logits.softmax(-1) * chosen


def _slots(shares: Tensor, chosen: int) -> Tensor:
    """The experts that a token goes to, ascending, ``[batch, tokens, chosen]``."""
    return (shares != 0).float().argsort(dim=-1, descending=True, stable=True)[..., :chosen]


def _experts(own: Mapping[str, Any], where: Where, x: Tensor, shares: Tensor) -> Tensor:
    """Every expert with every token: one graph, whatever is chosen."""
    stack, slots = where.weights[own["matrix"]], _slots(shares, own["chosen"])
    biases = None if own["bias"] is None else where.weights[own["bias"]].view(len(stack), -1)
    out: Tensor | float = 0.0
    for expert, weight in enumerate(stack):
        here = (slots == expert)[..., None]
        mine = (x.unflatten(-1, (own["chosen"], -1)) * here).sum(-2) if own["own"] else x
        y = F.linear(mine.to(weight.dtype), weight)
        y = y if biases is None else y + biases[expert].to(y.dtype)
        out = out + y[..., None, :] * here  # [batch, tokens, chosen, rows]
    assert isinstance(out, Tensor)
    return out.unflatten(-1, (own["parts"], -1)).transpose(-3, -2).flatten(-3)


def _mix(own: Mapping[str, Any], where: Where, y: Tensor, shares: Tensor) -> Tensor:
    chosen = y.shape[-1] // own["width"]
    of = shares.gather(-1, _slots(shares, chosen))
    return (y.float().unflatten(-1, (chosen, -1)) * of[..., None]).sum(-2)


OPERATIONS: Mapping[str, Callable[..., Tensor]] = {
    "input": _input,
    "embed": _embed,
    "position": _position,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "slice": _slice,
    "add": _add,
    "mul": _mul,
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": _relu,
    "rope": _rope,
    "softcap": _softcap,
    "attention": _attention,
    "clamped_gate": _clamped_gate,
    "route": _route,
    "experts": _experts,
    "mix": _mix,
}


def softcap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def whole_sequences(
    q: Tensor, k: Tensor, v: Tensor, own: Mapping[str, Any], sinks: Tensor | None = None
) -> Tensor:
    """Each query sees the keys of its own sequence up to its own, at most ``window`` of them."""
    window, slopes, cap = own["window"], own["slopes"], own["cap"]
    n, shared = q.shape[1], q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    seen: Tensor | None = None
    if not (cap is slopes is sinks is None) or (window is not None and window < n):
        places = torch.arange(n, device=q.device)
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < (window or n))
        if slopes is not None:
            lost = torch.tensor(slopes, device=q.device)[:, None, None] * distance
            seen = torch.where(seen, -lost, -torch.inf).to(q.dtype)
    if seen is not None and not (cap is sinks is None):  # the fused attention knows neither
        scores = q @ k.transpose(-1, -2) * own["scale"]
        if cap is not None:
            scores = softcap(scores.float(), cap)
        scores = scores.masked_fill(~seen, -torch.inf) if slopes is None else scores + seen
        return (softmax_beside(scores, sinks).to(v.dtype) @ v).transpose(1, 2)
    causal = seen is None
    out = F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=own["scale"])
    return out.transpose(1, 2)


def softmax_beside(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Of ``scores [batch, n_heads, queries, keys]`` beside a sink for each head, float32."""
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32)
    beside = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat((scores, beside), dim=-1).softmax(-1, dtype=torch.float32)[..., :-1]


@lru_cache(maxsize=8)
def turns_of(ropes: tuple[RopeTable, ...], n: int, device: torch.device) -> Turns:
    """Positions ``0 .. n - 1``, with the cos and sin that the engine turns by."""
    found = []
    for table in ropes:
        of = RopeTables(table, n)
        of.cover(n)
        cos, sin = (torch.from_numpy(t)[:, None].to(device) for t in (of.cos, of.sin))
        found.append((cos, sin))
    return Turns(torch.arange(n, device=device), tuple(found))
