"""Calibration: a little text, and what each matrix sees of it.

By default the text comes from the teacher itself (data-free, as in DB-LLM): sampled at temperature
1, half of it as answers to the chat template's empty user turn. Layers are visited in order with
all their tokens at once, and each sees the activations that the layers before it, already
quantized, really produce.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDBError
from ..model.families import program_of
from ..text.spec import TokenizerSpec
from ..text.tokenizer import load_tokenizer
from . import sample
from .feedback import panels
from .forward import Float32Program, Meeting
from .sources import Source
from .windows import lead_of, windows
from .workers import Each, in_turn

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]
Replace = Callable[[str, "Needs", "int | None"], Float32]

# Of all experts' inputs, what counts beside an expert's own.
SHARED_TOKENS = 256

# Tokens and outputs of a matrix, or two stretches of its inputs, that are one product.
_CHUNK_TOKENS = 2048
_CHUNK_COLUMNS = 256


@dataclass(frozen=True)
class Calibration:
    """``ids [sequences, tokens]`` int32 and a JSON record of where they come from."""

    ids: Ids
    record: dict[str, Any] = field(default_factory=dict)


def from_text(file: Path, spec: TokenizerSpec, sequences: int, length: int) -> Calibration:
    """Windows of ``length`` tokens spread evenly over a text file.

    Raises ``EdgeDBError`` when the file cannot be read or holds less than one window, or a window
    has no room for text.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EdgeDBError(f"{file}: {error.strerror}") from None
    ids = np.array(load_tokenizer(spec).encode(text, add_bos=False), np.int32)
    found = windows(str(file), ids, lead_of(spec), sequences, length)
    record = {"kind": "text", "file": file.name, "tokens": int(found.size)}
    return Calibration(found, record)


def from_teacher(
    source: Source,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Texts that the model itself writes (see ``edgedb.convert.sample``)."""
    ids = sample.from_teacher(source, sequences, length, seed, progress)
    record = {"kind": "sampled from the teacher", "seed": seed, "tokens": int(ids.size)}
    return Calibration(ids, record)


class LayerInputs:
    """Carries the calibration tokens through the model, layer by layer, twice: as the teacher reads
    them and as the layers before, already quantized, do.

    ``exact`` and ``hidden [sequences, tokens, hidden_size]`` are the residual streams of the two
    after ``layer`` layers.
    """

    def __init__(self, source: Source, ids: Ids, each: Each = in_turn) -> None:
        self.source, self._each = source, each
        self.layer = 0
        self.program = program_of(source.config)
        self._forward = Float32Program(self.program, ids.shape[1], each)
        self.exact = self.hidden = embedded(source, ids)

    def next_layer(self, store: Replace) -> None:
        """Run one layer. ``store(name, needs, expert)`` is called for each matrix in order, of a
        stack for each expert, and returns the weights to go on with."""
        prefix = f"layers.{self.layer}."
        block = self.program.kinds[self.program.layers[self.layer]]
        vectors = {name: self.source.tensor(prefix + name) for name in block.vectors}

        shared: dict[str, list[Float32]] = {}  # of a stack, of all its experts' inputs

        def weights_at(name: str, met: Sequence[Meeting], expert: int | None) -> list[Float32]:
            teacher, here = met
            if expert is None:
                weight = self.source.tensor(prefix + name)
                needs = Needs.of(weight, teacher, here, self._each)
                return [weight, store(prefix + name, needs, None)]
            weight = self.source.expert(prefix + name, expert)
            if name not in shared:
                assert here.shared is not None
                shared.clear()
                shared[name] = hessians(here.shared, self._each)
            needs = Needs.of_expert(weight, teacher, here, shared[name], self._each)
            return [weight, store(prefix + name, needs, expert)]

        streams = [self.exact, self.hidden]
        self.exact, self.hidden = self._forward.streams(self.layer, streams, vectors, weights_at)
        self.layer += 1

    def head(self) -> Needs:
        """After the last layer: what the head needs, which is too large to make up for anything."""
        vectors = {name: self.source.tensor(name) for name in self.program.final.vectors}
        x = self._forward.final(self.hidden, vectors)
        return Needs(hessians(x.reshape(-1, x.shape[-1]), self._each), None)


@dataclass(frozen=True)
class Needs:
    """What ``fdb.fit`` is told of a matrix's inputs, as means over tokens.

    hessians: ``x x^T`` for each of ``panels``; missing: of every output, what the teacher's has
    that the same weights would not give here, times x, ``[rows, cols]``; tokens: how many.
    """

    hessians: list[Float32]
    missing: Float32 | None
    tokens: int = 0

    @classmethod
    def of(cls, weight: Float32, teacher: Meeting, here: Meeting, each: Each = in_turn) -> Needs:
        """What is added to the residual stream is to make up for the error of that stream too."""
        n, (rows, cols) = len(here.x), weight.shape
        alone = teacher.base is None or here.base is None
        # The weights may come last: the sum over tokens is then one of squares of the inputs.
        inputs_first = alone and cols <= 2 * rows
        missing = np.zeros((cols if inputs_first else rows, cols), np.float32)

        def some(part: slice) -> None:
            """Of outputs, or of inputs where these come first."""
            for start in range(0, n, _CHUNK_TOKENS):
                s = slice(start, start + _CHUNK_TOKENS)
                if inputs_first:
                    lack = teacher.x[s, part] - here.x[s, part]
                else:
                    lack = (teacher.x[s] - here.x[s]) @ weight[part].T
                if teacher.base is not None and here.base is not None:
                    lack += teacher.base[s, part] - here.base[s, part]
                missing[part] += lack.T @ here.x[s]

        list(each(some, _stretches(len(missing))))
        if inputs_first:
            missing = weight @ missing
        missing /= np.float32(n)
        return cls(hessians(here.x, each), missing, n)

    @classmethod
    def of_expert(
        cls,
        weight: Float32,
        teacher: Meeting,
        here: Meeting,
        shared: list[Float32],
        each: Each = in_turn,
    ) -> Needs:
        """Of one of a stack, whose inputs all together have the Hessians ``shared``: those count as
        ``SHARED_TOKENS`` of its own, so that an expert that few tokens went to is not fitted to
        these few. Nothing is missing where the teacher sent a token elsewhere."""
        n = len(here.x)
        if not n:
            return cls(shared, None)
        assert teacher.tokens is not None and here.tokens is not None
        theirs = here.x.copy()
        _, mine, found = np.intersect1d(
            here.tokens, teacher.tokens, assume_unique=True, return_indices=True
        )
        theirs[mine] = teacher.x[found]
        needs = cls.of(weight, Meeting(theirs, None), Meeting(here.x, None), each)
        assert needs.missing is not None
        share = np.float32(n / (n + SHARED_TOKENS))
        for own, of_all in zip(needs.hessians, shared, strict=True):
            own *= share
            own += (1 - share) * of_all
        return replace(needs, missing=share * needs.missing)


def hessians(x: Float32, each: Each = in_turn) -> list[Float32]:
    """Mean of ``x x^T`` over tokens, ``x [tokens, cols]``, for each panel of columns."""
    return [_hessian(x[:, part], each) for part in panels(x.shape[1])]


def _hessian(x: Float32, each: Each) -> Float32:
    """Blocks on and above the diagonal; those below are their mirror images."""
    found = np.empty((x.shape[1], x.shape[1]), np.float32)

    def block(where: tuple[slice, slice]) -> None:
        first, second = where
        found[where] = x[:, first].T @ x[:, second] / np.float32(len(x))
        if first != second:
            found[second, first] = found[where].T

    stretches = _stretches(x.shape[1])
    list(each(block, itertools.combinations_with_replacement(stretches, 2)))
    return found


def _stretches(columns: int) -> list[slice]:
    return [slice(at, at + _CHUNK_COLUMNS) for at in range(0, columns, _CHUNK_COLUMNS)]


def embedded(source: Source, ids: Ids) -> Float32:
    """What the first layer reads for ``ids [sequences, tokens]``: ``[*ids.shape, width]``."""
    first = program_of(source.config).first
    forward = Float32Program(program_of(source.config), ids.shape[1])
    weights = entrance(source, ids.shape[1])
    return forward.values(first, looked_up(source, ids), *weights)[first.output]


def entrance(source: Source, length: int) -> tuple[dict[str, Float32], dict[str, Float32]]:
    """Vectors of the block before the layers, and its rows for ``length`` positions."""
    first = program_of(source.config).first
    vectors = {name: source.tensor(name) for name in first.vectors}
    positions = [v["matrix"] for v in first.operations if v.op == "position"]
    return vectors, {name: source.tensor(name, slice(0, length)) for name in positions}


def looked_up(source: Source, ids: Ids) -> Float32:
    """Rows of the embedding ``[*ids.shape, width]``."""
    unique, where = np.unique(ids, return_inverse=True)
    rows = np.stack([source.tensor("embedding", slice(i, i + 1))[0] for i in unique])
    found: Float32 = rows[where.reshape(ids.shape)]
    return found
