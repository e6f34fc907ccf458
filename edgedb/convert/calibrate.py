"""Calibration: a little text, and what each matrix sees of it.

By default the text comes from the teacher itself (data-free, as in DB-LLM): sampled at temperature
1, half of it as answers to the chat template's empty user turn. Layers are visited in order with
all their tokens at once, and each sees the activations that the layers before it, already
quantized, really produce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
from .forward import Float32Program
from .sources import Source

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]


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
    lead = [spec.bos_id] if spec.add_bos and spec.bos_id is not None else []
    step = length - len(lead)
    if step < 1:
        raise EdgeDBError(f"a sequence of {length} tokens has no room for text")
    count = min(sequences, len(ids) // step)
    if not count:
        raise EdgeDBError(f"{file}: {len(ids)} tokens are too few to calibrate with, {step} needed")
    starts = np.linspace(0, len(ids) - step, count).astype(int)
    windows = np.stack([np.concatenate([lead, ids[s : s + step]]) for s in starts])
    record = {"kind": "text", "file": file.name, "tokens": int(windows.size)}
    return Calibration(windows.astype(np.int32), record)


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
    """Carries the calibration tokens through the model, layer by layer.

    ``hidden [sequences, tokens, hidden_size]`` is the residual stream after ``layer`` layers.
    """

    def __init__(self, source: Source, ids: Ids) -> None:
        self.source = source
        self.layer = 0
        self.program = program_of(source.config)
        self._forward = Float32Program(self.program, ids.shape[1])
        unique, where = np.unique(ids, return_inverse=True)
        rows = np.stack([source.tensor("embedding", slice(i, i + 1))[0] for i in unique])
        self.hidden = rows[where.reshape(ids.shape)]

    def next_layer(self, replace: Callable[[str, list[Float32]], Float32]) -> None:
        """Run one layer. ``replace(name, hessians)`` is called for each matrix in order, with the
        mean of ``x x^T`` over its inputs (one for each of ``panels``), and returns the weights to
        go on with.
        """
        prefix = f"layers.{self.layer}."
        block = self.program.kinds[self.program.layers[self.layer]]
        vectors = {name: self.source.tensor(prefix + name) for name in block.vectors}
        self.hidden = self._forward.layer(
            self.layer, self.hidden, vectors, lambda name, x: replace(prefix + name, hessians(x))
        )
        self.layer += 1

    def head(self) -> list[Float32]:
        """After the last layer: the mean of ``x x^T`` over the inputs of the head."""
        vectors = {name: self.source.tensor(name) for name in self.program.final.vectors}
        x = self._forward.final(self.hidden, vectors)
        return hessians(x.reshape(-1, x.shape[-1]))


def hessians(x: Float32) -> list[Float32]:
    """Mean of ``x x^T`` over tokens, ``x [tokens, cols]``, for each panel of columns."""
    return [x[:, part].T @ x[:, part] / np.float32(len(x)) for part in panels(x.shape[1])]
