"""What a teacher predicts on a text, in a file: the form of llama.cpp's ``llama-perplexity``.

``llama-perplexity --kl-divergence-base`` writes such files and ``--kl-divergence`` compares a model
with one, so that two engines can be measured against the very same predictions. Little-endian, in
this order:

    "_logits_"                             8 bytes
    window, vocabulary, windows            uint32 each
    ids of the text                        int32 [windows, window]
    for each scored place of each window:
        scale, lowest                      float32 each
        codes                              uint16 [vocabulary, and one more if that is odd]

The log-probability of token ``i`` is ``scale * codes[i] + lowest``; what is more than 16 nats below
the likeliest is written as if it were 16 below. A window's second half is scored: the tokens
behind its place ``window // 2``, each predicted from all before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..files import open_regular

Float32 = NDArray[np.float32]

MAGIC = b"_logits_"
MAX_WINDOW = 1 << 20  # tokens
MAX_VOCABULARY = 1 << 22
_RANGE = 16.0  # nats that a row spans at most
_STEPS = 65535
_HEADER = struct.Struct("<8s3I")


def first_scored(window: int) -> int:
    """The place of a window whose successor is the first token scored."""
    return window // 2


def _row_type(vocabulary: int) -> np.dtype[np.void]:
    codes = vocabulary + vocabulary % 2
    return np.dtype([("scale", "<f4"), ("lowest", "<f4"), ("codes", "<u2", (codes,))])


class BaseLogits:
    """A file of them, open. ``ids`` is int64 ``[windows, window]``."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Raises ``FormatError`` unless ``file``, of ``size`` bytes, is one and complete."""
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise FormatError("is no file of a teacher's logits (llama-perplexity's form)")
        _, self.window, self.vocabulary, self.n_windows = _HEADER.unpack(head)
        if not 4 <= self.window <= MAX_WINDOW or not 1 <= self.vocabulary <= MAX_VOCABULARY:
            raise FormatError(
                f"has windows of {self.window:,} tokens of a vocabulary of {self.vocabulary:,}; "
                f"4 to {MAX_WINDOW:,} and at most {MAX_VOCABULARY:,} can be read"
            )
        self._row = _row_type(self.vocabulary)
        self.n_scored = self.window - 1 - first_scored(self.window)  # of a window
        text = 4 * self.n_windows * self.window
        self._rows_at = _HEADER.size + text
        expected = self._rows_at + self.n_windows * self.n_scored * self._row.itemsize
        if not self.n_windows or size != expected:
            raise FormatError(
                f"has {size:,} bytes instead of {expected:,}: it is damaged or was cut short"
            )
        self._file = file
        ids = np.frombuffer(self._read(_HEADER.size, text), "<i4")
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            raise FormatError(f"has token ids outside of its vocabulary of {self.vocabulary:,}")
        self.ids = ids.reshape(self.n_windows, self.window).astype(np.int64)

    def log_probabilities(self, window: int, start: int, n: int) -> Float32:
        """Of scored places ``start .. start + n - 1`` of a window, float32 ``[n, vocabulary]``.

        Raises ``FormatError`` for a row that holds no log-probabilities.
        """
        at = self._rows_at + (window * self.n_scored + start) * self._row.itemsize
        rows = np.frombuffer(self._read(at, n * self._row.itemsize), self._row)
        scale, lowest = rows["scale"][:, None], rows["lowest"][:, None]
        codes = rows["codes"][:, : self.vocabulary]
        highest = lowest + scale * codes.max(axis=1, keepdims=True)
        # Comparisons with NaN are false.
        if not ((scale >= 0) & (lowest >= -1e6) & (highest <= 0.01)).all():
            raise FormatError(f"window {window + 1} has probabilities that are none")
        found: Float32 = codes.astype(np.float32)
        found *= scale
        found += lowest
        return found

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        content = self._file.read(size)
        if len(content) != size:
            raise FormatError("was cut short while it was read")
        return content


@contextmanager
def open_base(path: Path) -> Iterator[BaseLogits]:
    """The file at ``path``; raises ``EdgeDBError`` that names it, here or while it is read."""
    with open_regular(path) as file:
        try:
            yield BaseLogits(file, os.fstat(file.fileno()).st_size)
        except FormatError as error:
            raise FormatError(f"{path} {error}") from None


def write_header(file: BinaryIO, ids: NDArray[np.int64], vocabulary: int) -> None:
    """Begin a file for windows ``ids [windows, window]``; ``encode`` makes what follows."""
    n_windows, window = ids.shape
    file.write(_HEADER.pack(MAGIC, window, vocabulary, n_windows))
    file.write(ids.astype("<i4").tobytes())


def encode(logits: Float32) -> bytes:
    """Rows for ``logits [n, vocabulary]``, of scored places one after another."""
    rows = np.zeros(len(logits), _row_type(logits.shape[1]))
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(_RANGE))
    log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64))
    scale = (top - low) / np.float32(_STEPS)
    rows["scale"] = scale[:, 0]
    rows["lowest"] = (low - top - log_sum.astype(np.float32))[:, 0]
    steps = np.rint((np.maximum(logits, low) - low) / np.where(scale > 0, scale, 1))
    rows["codes"][:, : logits.shape[1]] = np.minimum(steps, _STEPS)
    return rows.tobytes()
