"""What an error at each place of a model costs at its end: one pass forwards, one backwards.

The loss is the surprise at a token drawn from what the model itself predicts. Its mean gradient is
zero, and its mean square along a direction is the curvature of the KL divergence there (Fisher's
information): half of it is, to second order, the KL that a step in that direction makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDBError, FormatError
from ..model.families import program_of
from .adjoint import Adjoint, Seen
from .calibrate import embedded, entrance, looked_up
from .forward import Float32Program, softmax
from .sources import Source
from .workers import Each, in_turn

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

# Tokens (of whole sequences, one at least) whose every value of a layer a thread has in memory at a
# time, or whose logits.
_CHUNK_TOKENS = 512


def backwards(
    source: Source, ids: Ids, file: Path, seed: int, seen: Seen, each: Each = in_turn
) -> Iterator[str]:
    """Run ``ids [sequences, tokens]`` through the model and the loss back to its embedding.

    ``seen(name, x, gradient)`` for every matrix: some sequences' inputs ``[sequences, tokens,
    cols]`` and the gradient of its outputs ``[sequences, tokens, rows]``; the last call, of the
    embedding, has the gradient of the rows that were looked up, ``[sequences, tokens, cols]``, and
    those rows. Yields what was done: a layer on the way there, and on the way back everything, last
    layer first. One layer's weights are in memory; the layers' inputs lie in ``file``, float32
    ``[layers, sequences, tokens, width]``. Raises ``EdgeDBError`` if the disk is full, and
    ``FormatError`` for weights that are no numbers.
    """
    program = program_of(source.config)
    forward = Float32Program(program, ids.shape[1], each)
    adjoint = Adjoint(forward)
    layers = range(len(program.layers))
    sequence = ids.shape[1] * program.width  # floats

    def tensors(i: int) -> tuple[dict[str, Float32], dict[str, Float32]]:
        block = program.kinds[program.layers[i]]
        vectors, weights = (
            {name: _finite(source, f"layers.{i}.{name}") for name in names}
            for names in (block.vectors, block.matrices)
        )
        return vectors, weights

    def through(i: int, hidden: Float32) -> Float32:
        vectors, weights = tensors(i)

        def weight_at(name: str, x: Float32, expert: int | None) -> Float32:
            return weights[name] if expert is None else weights[name][expert]

        return forward.layer(i, hidden, vectors, weight_at)

    def back(i: int) -> None:
        """``gradient`` of the layer's output becomes that of its input."""
        vectors, weights = tensors(i)

        block = program.kinds[program.layers[i]]

        def some(start: int) -> list[tuple[str, Float32, Float32]]:
            part, met = slice(start, start + step), []
            shape = gradient[part].shape
            offset = 4 * (i * ids.size * program.width + start * sequence)
            x = np.fromfile(file, np.float32, shape[0] * sequence, offset=offset).reshape(shape)
            gradient[part] = adjoint.block(
                block, x, gradient[part], vectors, weights, lambda *what: met.append(what)
            )
            return met

        for met in each(some, range(0, len(ids), step)):
            for name, x, g in met:
                seen(f"layers.{i}.{name}", x, g)

    step = max(1, _CHUNK_TOKENS // ids.shape[1])
    rows, hidden = looked_up(source, ids), embedded(source, ids)
    for i in layers:
        _store(file, hidden, fresh=i == 0)
        hidden = through(i, hidden)
        yield f"layers.{i}"
    gradient = _from_the_end(source, forward, adjoint, hidden, seed, seen, each)
    yield "head"
    for i in reversed(layers):
        back(i)
        yield f"layers.{i}"
    vectors, weights = entrance(source, ids.shape[1])
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        gradient[part] = adjoint.block(program.first, rows[part], gradient[part], vectors, weights)
    seen("embedding", rows, gradient)
    yield "embedding"


def _store(file: Path, hidden: Float32, *, fresh: bool) -> None:
    """Append to ``file``. A mapping of it would be ended by a signal where the disk is full."""
    try:
        with file.open("wb" if fresh else "ab") as store:
            store.write(np.ascontiguousarray(hidden).data)
    except OSError as error:
        raise EdgeDBError(f"{file}: {error.strerror}. Run the same command again") from None


def _from_the_end(
    source: Source,
    forward: Float32Program,
    adjoint: Adjoint,
    hidden: Float32,
    seed: int,
    seen: Seen,
    each: Each,
) -> Float32:
    """The gradient of the last layer's output ``hidden [sequences, tokens, width]``."""
    final = forward.program.final
    vectors = {name: source.tensor(name) for name in final.vectors}
    block = forward.program.head
    (name,) = block.matrices
    weights = {name: _finite(source, name)}
    of_head = {name: source.tensor(name) for name in block.vectors}

    out = np.empty_like(hidden)
    alone = Float32Program(forward.program, hidden.shape[1])  # a thread must not wait for others

    def one(i: int) -> list[tuple[str, Float32, Float32]]:
        row, random, met = hidden[i], np.random.default_rng((seed, i)), []
        x = alone.final(row[None], vectors)
        gradient = np.empty_like(x)
        for at in range(0, len(row), _CHUNK_TOKENS):
            part = slice(at, at + _CHUNK_TOKENS)
            values = forward.values(block, x[:, part], of_head, weights)
            surprise = softmax(values[block.output][0].copy())
            drawn = draw(surprise, random)
            surprise[np.arange(len(drawn)), drawn] -= 1
            gradient[:, part] = adjoint.back(
                block, values, surprise[None], of_head, weights, lambda *what: met.append(what)
            )
        out[i] = adjoint.block(final, row[None], gradient, vectors, {})[0]
        return met

    for met in each(one, range(len(hidden))):
        for _, x, gradient in met:
            seen("head", x, gradient)
    return out


def _finite(source: Source, name: str) -> Float32:
    """A tensor, refused by its name where it would make every gradient no number."""
    found = source.tensor(name)
    if not np.isfinite(found).all():
        raise FormatError(f"{name}: weights hold NaN or infinity; the source may be damaged")
    return found


def draw(probabilities: Float32, random: np.random.Generator) -> NDArray[np.int64]:
    """One index for each row of ``probabilities [n, vocabulary]``."""
    running = np.cumsum(probabilities, axis=1)
    wanted = random.random((len(running), 1), np.float32) * running[:, -1:]
    return np.minimum((running <= wanted).sum(axis=1), probabilities.shape[1] - 1)
