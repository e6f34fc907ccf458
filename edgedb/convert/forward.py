"""A program in float32 over many tokens at once, a layer's weights at a time, for the exporter.

The runtime's interpreters keep a whole model and quantize activations; calibration needs the
opposite, and the inputs of every matrix. Sequences are read whole, from position 0 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..model.rope import RopeTables
from ..ops import experts
from ..ops.functions import FUNCTIONS, clamped_gate, softcap, softcap_slope
from ..ops.program import Block, Program
from ..ops.values import ACTIVATIONS, RopeTable, Value
from .workers import Each, in_turn

Float32 = NDArray[np.float32]

# Called before each matrix with its name and all that it will be multiplied with [tokens, cols];
# returns the weights [rows, cols] to go on with; of a stack for each expert in turn, with its
# number.
WeightAt = Callable[[str, Float32, int | None], Float32]


class Meeting(NamedTuple):
    """What a matrix is about to be multiplied with, and what the product will be added to."""

    x: Float32  # [tokens, cols]
    base: Float32 | None  # [tokens, rows], where an addition is all that becomes of the product
    # Of an expert: which tokens of the stream these are, and the inputs of all experts together.
    tokens: experts.Indices | None = None
    shared: Float32 | None = None


# The same for several streams of tokens at once, each with weights of its own.
WeightsAt = Callable[[str, Sequence[Meeting], int | None], Sequence[Float32]]

# Tokens (of whole sequences, one at least) between two matrices: the widest activations, such as
# gate and up, exist for so many at a time.
_CHUNK_TOKENS = 512


class Float32Program:
    """The layers of a program; weights come from the caller."""

    def __init__(self, program: Program, length: int, each: Each = in_turn) -> None:
        """``length``: tokens of a sequence; ``each``: computes sequences, some side by side."""
        self.program, self._each = program, each
        self._tables: dict[RopeTable, RopeTables] = {}
        for table in program.ropes():
            self._tables[table] = RopeTables(table, length)
            self._tables[table].cover(length)

    def layer(
        self, i: int, x: Float32, vectors: Mapping[str, Float32], weight_at: WeightAt
    ) -> Float32:
        """Layer ``i`` of ``x [sequences, tokens, width]``. Names are those of the block."""
        (out,) = self.streams(i, [x], vectors, lambda name, met, e: [weight_at(name, met[0].x, e)])
        return out

    def streams(
        self,
        i: int,
        xs: Sequence[Float32],
        vectors: Mapping[str, Float32],
        weights_at: WeightsAt,
    ) -> list[Float32]:
        """Layer ``i`` of several streams ``[sequences, tokens, width]`` in step: every matrix is
        asked for when its inputs in all of them are there."""
        return self._run(self.program.kinds[self.program.layers[i]], xs, vectors, weights_at)

    def final(self, x: Float32, vectors: Mapping[str, Float32]) -> Float32:
        """What the head reads, of the same shape."""
        return self._run(self.program.final, [x], vectors, _no_matrix)[0]

    def _run(
        self,
        block: Block,
        xs: Sequence[Float32],
        vectors: Mapping[str, Float32],
        weights_at: WeightsAt,
    ) -> list[Float32]:
        """A block of every stream; a matrix sees all their tokens at once."""
        streams = [{block.operations[0]: x} for x in xs]
        for segment, needed in _segments(block):
            weights: Sequence[Float32 | None] = [None] * len(streams)
            if segment[0].op == "linear":
                met = [_meeting(block, segment[0], found) for found in streams]
                weights = weights_at(segment[0]["matrix"], met, None)
            elif segment[0].op == "experts":
                _each_expert(segment[0], streams, vectors, weights_at)
                segment = segment[1:]
            for found, weight in zip(streams, weights, strict=True):
                self._extend(found, segment, needed, vectors, weight)
        return [found[block.output] for found in streams]

    def _extend(
        self,
        found: dict[Value, Float32],
        segment: Sequence[Value],
        needed: set[Value],
        vectors: Mapping[str, Float32],
        weight: Float32 | None,
    ) -> None:
        """Compute a segment, some sequences at a time; of all values those ``needed`` stay."""
        sequences, length, _ = next(iter(found.values())).shape
        kept = [value for value in segment if value in needed]
        whole = {v: np.empty((sequences, length, v.width), np.float32) for v in kept}
        step = max(1, _CHUNK_TOKENS // length)

        def some(start: int) -> None:
            part = slice(start, start + step)
            values = {value: array[part] for value, array in found.items()}
            for value in segment:
                values[value] = self._do(value, values, vectors, weight)
            for value in kept:
                whole[value][part] = values[value]

        list(self._each(some, range(0, sequences, step)))
        found |= whole
        for value in found.keys() - needed:
            del found[value]

    def values(
        self,
        block: Block,
        x: Float32,
        vectors: Mapping[str, Float32],
        weights: Mapping[str, Float32],
    ) -> dict[Value, Float32]:
        """Every value of a block whose first is ``x [sequences, tokens, width]``: its input, or in
        ``first`` what was looked up for the ids. ``weights``: also rows for the positions."""
        found: dict[Value, Float32] = {block.operations[0]: x}
        for value in block.operations[1:]:
            weight = weights[value["matrix"]] if "matrix" in value.attributes else None
            found[value] = self._do(value, found, vectors, weight)
        return found

    def _do(
        self,
        value: Value,
        values: Mapping[Value, Float32],
        vectors: Mapping[str, Float32],
        weight: Float32 | None,
    ) -> Float32:
        """One operation of ``[sequences, tokens, width]``."""
        op, args = value.op, [values[argument] for argument in value.args]
        if op == "position":
            assert weight is not None
            of_any = next(iter(values.values()))
            return np.broadcast_to(weight[: of_any.shape[1]], (*of_any.shape[:2], value.width))
        if op == "linear":
            assert weight is not None, "a segment begins with its matrix"
            y: Float32 = args[0] @ weight.T
            return y if value["bias"] is None else y + vectors[value["bias"]]
        if op == "rms_norm":
            heads = args[0].reshape(*args[0].shape[:2], value["heads"], -1)
            return rms_norm(heads, vectors[value["weight"]], value["eps"]).reshape(args[0].shape)
        if op == "layer_norm":
            heads = args[0].reshape(*args[0].shape[:2], value["heads"], -1)
            shift = np.float32(0) if value["bias"] is None else vectors[value["bias"]]
            y = layer_norm(heads, vectors[value["weight"]], shift, value["eps"])
            return y.reshape(args[0].shape)
        if op == "slice":
            return args[0][..., value["begin"] : value["begin"] + value.width]
        if op == "add":
            return args[0] + args[1]
        if op == "mul":
            return args[0] * args[1]
        if op in ACTIVATIONS:
            return FUNCTIONS[op](args[0])
        if op == "rope":
            heads = args[0].reshape(*args[0].shape[:2], value["heads"], -1)
            return self.turned(heads, value["table"]).reshape(args[0].shape)
        if op == "softcap":
            return softcap(args[0], value["cap"])
        if op == "attention":
            sinks = sinks_of(value, vectors)
            return np.stack([_attention(value, sinks, *rows) for rows in zip(*args, strict=True)])
        if op == "clamped_gate":
            return clamped_gate(args[0], args[1], value["alpha"], value["limit"])
        if op == "route":
            return experts.route(args[0], value["chosen"], value["normalized"])
        if op in ("experts", "mix"):
            x, shares = (a.reshape(-1, a.shape[-1]) for a in args)
            if op == "mix":
                y = experts.mix(x, shares, value.args[1]["chosen"])
            else:
                bias = None if value["bias"] is None else vectors[value["bias"]]
                assert weight is not None
                stack = weight
                y = experts.apply(value, x, shares, lambda i, rows: rows @ stack[i].T, bias)
            return y.reshape(*args[0].shape[:-1], -1)
        raise NotImplementedError(f"operation {op}")

    def turned(self, heads: Float32, table: RopeTable, *, back: bool = False) -> Float32:
        """``[sequences, tokens, heads, dim]`` by the tokens' positions; ``back``: the transposed
        matrix, which turns by as much the other way."""
        n = heads.shape[1]
        cos, sin = (t[:n, None] for t in (self._tables[table].cos, self._tables[table].sin))
        sin = -sin if back else sin
        first, second = np.split(heads, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _segments(block: Block) -> Iterator[tuple[list[Value], set[Value]]]:
    """Operations up to the next matrix, and the values that are read after them."""
    segments: list[list[Value]] = [[]]
    for value in block.operations:
        if value.op in ("linear", "experts"):
            segments.append([])
        if value.op != "input":
            segments[-1].append(value)
    for i, segment in enumerate(segments):
        later = {argument for rest in segments[i + 1 :] for v in rest for argument in v.args}
        if segment:
            yield segment, later | {block.output}


def _each_expert(
    value: Value,
    streams: Sequence[dict[Value, Float32]],
    vectors: Mapping[str, Float32],
    weights_at: WeightsAt,
) -> None:
    """``value``, of ``Recorder.experts``, in every stream: one expert's weights at a time, those of
    experts that no token goes to as well."""
    inputs, places, outs = [], [], []
    for found in streams:
        x, shares = (found[argument].reshape(-1, argument.width) for argument in value.args)
        inputs.append(x)
        places.append({e: (tokens, slots) for e, tokens, slots in experts.places(shares)})
        outs.append(np.zeros((len(x), value.width), np.float32))
    nowhere = np.empty(0, np.int64), np.empty(0, np.int64)
    for e in range(value["experts"]):
        where = [found.get(e, nowhere) for found in places]
        met = [
            Meeting(experts.inputs(value, x, *at), None, at[0], x.reshape(-1, value["cols"]))
            for x, at in zip(inputs, where, strict=True)
        ]
        weights = weights_at(value["matrix"], met, e)
        for out, meeting, at, weight in zip(outs, met, where, weights, strict=True):
            y = meeting.x @ weight.T
            if value["bias"] is not None:
                y += vectors[value["bias"]].reshape(value["experts"], -1)[e]
            experts.put(value, out, *at, y)
    for found, out in zip(streams, outs, strict=True):
        found[value] = out.reshape(*found[value.args[1]].shape[:2], -1)


def _meeting(block: Block, linear: Value, found: Mapping[Value, Float32]) -> Meeting:
    """Of the values ``found`` so far."""

    def rows(value: Value) -> Float32:
        return found[value].reshape(-1, value.width)

    base = base_of(block, linear)
    return Meeting(rows(linear.args[0]), None if base is None else rows(base))


def base_of(block: Block, linear: Value) -> Value | None:
    """What the product is added to, if that is all that becomes of it and is there before it."""
    if len(readers := block.readers(linear)) != 1 or readers[0].op != "add":
        return None
    earlier = block.operations[: block.operations.index(linear)]
    return next((value for value in readers[0].args if value in earlier), None)


def _no_matrix(name: str, met: Sequence[Meeting], expert: int | None) -> Sequence[Float32]:
    raise NotImplementedError(f"matrix {name} outside of a layer")


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """``x / rms(x) * weight`` along the last axis."""
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def layer_norm(x: Float32, weight: Float32, shift: Float32 | np.float32, eps: float) -> Float32:
    """``(x - mean) / standard deviation * weight + shift`` along the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centered, centered)[..., None] / np.float32(x.shape[-1])
    return centered / np.sqrt(variance + np.float32(eps)) * weight + shift


def sinks_of(value: Value, vectors: Mapping[str, Float32]) -> Float32 | None:
    """The scores of an attention's sinks, ``[n_heads]``."""
    return None if value["sinks"] is None else vectors[value["sinks"]]


def _attention(value: Value, sinks: Float32 | None, q: Float32, k: Float32, v: Float32) -> Float32:
    """Of one sequence ``[tokens, width]``, one key/value head at a time."""
    n, dim = len(q), value["head_dim"]
    values = v.reshape(n, -1, dim)
    mixed = np.empty(
        (n, value["n_kv_heads"], value["n_heads"] // value["n_kv_heads"], dim), q.dtype
    )
    for head, (weights, _) in enumerate(attention_weights(value, q, k, sinks)):
        mixed[:, head] = (weights @ values[:, head]).swapaxes(0, 1)
    return mixed.reshape(n, -1)


def attention_weights(
    value: Value, q: Float32, k: Float32, sinks: Float32 | None
) -> Iterator[tuple[Float32, Float32 | None]]:
    """What each query makes of each key, ``[queries a head, tokens, tokens]`` for every key/value
    head in turn; and the slope of the scores' cap, where they have one."""
    n, dim = len(q), value["head_dim"]
    queries = q.reshape(n, value["n_kv_heads"], -1, dim).transpose(1, 2, 0, 3)
    keys = k.reshape(n, -1, dim).transpose(1, 0, 2)
    distance = np.arange(n)[:, None] - np.arange(n)
    hidden = (distance < 0) | (distance >= (value["window"] or n))
    unseen = np.where(hidden, np.float32(-np.inf), np.float32(0))
    slopes = value["slopes"] and np.array(value["slopes"], np.float32).reshape(keys.shape[0], -1)
    for head, group in enumerate(np.ascontiguousarray(queries)):
        scores = group @ (keys[head].T * np.float32(value["scale"]))
        slope: Float32 | None = None
        if (cap := value["cap"]) is not None:
            scores = softcap(scores, cap)
            slope = softcap_slope(scores, cap)
        if slopes is not None:
            scores -= slopes[head][:, None, None] * distance.astype(np.float32)
        scores += unseen
        if sinks is None:
            yield softmax(scores), slope
            continue
        beside = sinks.reshape(value["n_kv_heads"], -1)[head][:, None, None]
        beside = np.broadcast_to(beside, (*scores.shape[:-1], 1))
        yield softmax(np.concatenate([scores, beside], axis=-1))[..., :-1], slope


def softmax(scores: Float32) -> Float32:
    """Softmax along the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
