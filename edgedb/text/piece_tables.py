"""The vocabulary and the merges of a BPE model as arrays, which a model file holds and which are
read where they lie.

A ``tokenizer.json`` spells every merge with the texts of two pieces; to read that for 262,144
pieces and their 514,906 merges takes the package tokenizers 1.4 s. Here they are numbers, sorted so
that what a pair makes is found by halving. ``docs/format.md`` says the same for other readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

MAX_PIECES = 1 << 21
MAX_MERGES = 1 << 24
MAX_BYTES = 1 << 28  # of all pieces together
# Type (as safetensors calls it) and largest shape of each array.
ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pieces": ("U8", (MAX_BYTES,)),
    "piece_ends": ("I32", (MAX_PIECES,)),
    "merge_ends": ("I32", (MAX_PIECES,)),
    "merges": ("I32", (3, MAX_MERGES)),
    "whole": ("I32", (MAX_PIECES,)),
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNKNOWN = -1

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PieceTables:
    """Pieces by id, and what two of them make together.

    pieces: UTF-8 of all, uint8 ``[bytes]``; piece_ends: where each ends, ``[V]``; merge_ends: where
    the merges of each as the left of two end, ``[V]``; merges: ``[3, M]``, of every merge the right
    piece, ascending for one left piece, its rank (the lower is joined first) and the piece that it
    makes; whole: pieces that merges do not make: a word that is one of them is that piece, ``[W]``.
    All but the first are int32.
    """

    pieces: npt.NDArray[np.uint8]
    piece_ends: Ints
    merge_ends: Ints
    merges: Ints
    whole: Ints

    def __len__(self) -> int:
        return len(self.piece_ends)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PieceTables):
            return NotImplemented
        return all(np.array_equal(a, vars(other)[name]) for name, a in self.arrays().items())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return dict(vars(self))

    def piece(self, number: int) -> str:
        """The text of a piece."""
        start = self.piece_ends[number - 1] if number else 0
        return self.pieces[start : self.piece_ends[number]].tobytes().decode("utf-8")

    def texts(self) -> list[str]:
        """Of every piece."""
        text, ends = self.pieces.tobytes(), self.piece_ends.tolist()
        return [text[a:b].decode("utf-8") for a, b in zip([0, *ends], ends, strict=False)]

    def find(self, text: str) -> int | None:
        """The piece that is ``text``, if there is one. Looks at all of its length."""
        wanted = np.frombuffer(text.encode("utf-8"), np.uint8)
        found = np.flatnonzero(self._sizes() == (len(wanted) or -1))
        for at, byte in enumerate(wanted):
            found = found[self.pieces[self.piece_ends[found] - len(wanted) + at] == byte]
        return int(found[0]) if len(found) else None

    def of_characters(self) -> Ints:
        """The piece that is one character, by its code point; -1 for none."""
        sizes, pieces = self._sizes(), self.pieces
        found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]] = []
        for size, low, high in ((1, 0, 0x80), (2, 0xC0, 0xE0), (3, 0xE0, 0xF0), (4, 0xF0, 0x100)):
            numbers = np.flatnonzero(sizes == size)
            first = pieces[self.piece_ends[numbers] - size]
            numbers = numbers[(first >= low) & (first < high)]
            points = pieces[self.piece_ends[numbers] - size].astype(np.int64) - low
            for at in range(1, size):
                low_bits = pieces[self.piece_ends[numbers] - size + at] & 0x3F
                points = points << 6 | low_bits
            found.append((points, numbers))
        largest = max((int(points.max()) for points, _ in found if len(points)), default=0)
        table = np.full(largest + 1, _UNKNOWN, np.int32)
        for points, numbers in found:
            table[points] = numbers
        return table

    def of_bytes(self) -> Ints | None:
        """The pieces ``<0x00>`` to ``<0xFF>``, ``[256]``; None unless all are there."""
        sizes = self._sizes()
        numbers = np.flatnonzero(sizes == len("<0x00>"))
        starts = self.pieces[self.piece_ends[numbers] - len("<0x00>")]
        table = np.full(256, _UNKNOWN, np.int32)
        for number in numbers[starts == ord("<")]:
            text = self.piece(int(number))
            if _BYTE.fullmatch(text):
                table[int(text[1:-1], 16)] = number
        return None if (table < 0).any() else table

    def made(self) -> npt.NDArray[np.bool_]:
        """Which pieces a text can become: those that a merge makes, and single characters."""
        found = np.zeros(len(self), np.bool_)
        found[self.merges[2]] = True
        characters = self.of_characters()
        found[characters[characters >= 0]] = True
        return found

    def check(self) -> None:
        """Raise ``FormatError`` unless everything is inside of what it points into."""
        n, (rows, m) = len(self), self.merges.shape
        if not n or len(self.merge_ends) != n or rows != 3:
            raise FormatError("tokenizer: tables of pieces whose sizes disagree")
        _check_ends("piece_ends", self.piece_ends, len(self.pieces), 1)
        _check_ends("merge_ends", self.merge_ends, m, 0)
        rights, ranks, results = self.merges
        for name, array, high in (
            ("merges", rights, n),
            ("merges", results, n),
            ("merges", ranks, 1 << 31),
            ("whole", self.whole, n),
        ):
            if len(array) and (array.min() < 0 or array.max() >= high):
                raise FormatError(f"tokenizer.{name}: a number that is no piece or rank")
        falls = np.flatnonzero(rights[1:] <= rights[:-1]) + 1
        if not np.isin(falls, self.merge_ends).all():
            raise FormatError("tokenizer.merges: the right pieces of a left one do not ascend")
        try:
            self.pieces.tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"tokenizer.pieces: not UTF-8 at byte {error.start}") from None
        starts = self.pieces[self.piece_ends[:-1]]
        if (starts & 0xC0 == 0x80).any():
            raise FormatError("tokenizer.piece_ends: a piece ends inside of a character")

    def _sizes(self) -> Ints:
        return np.diff(self.piece_ends, prepend=np.int32(0))


def _check_ends(name: str, ends: Ints, last: int, least: int) -> None:
    """Ascending by ``least`` or more, up to ``last``."""
    steps = np.diff(ends.astype(np.int64), prepend=0)
    if (steps < least).any() or ends[-1] != last:
        raise FormatError(f"tokenizer.{name}: expected ascending numbers up to {last}")


def tables_of(model: Mapping[str, Any]) -> PieceTables | None:
    """The tables of the BPE ``model`` of a ``tokenizer.json`` that the package tokenizers takes;
    ``whole`` is empty. None if they would not say all of it: ids with gaps, or an empty piece."""
    vocab: Mapping[str, int] = model["vocab"]
    texts = sorted(vocab, key=vocab.__getitem__)
    if [vocab[text] for text in texts] != list(range(len(texts))) or not all(texts):
        return None
    encoded = [text.encode("utf-8") for text in texts]
    pairs = _pairs(model["merges"])
    lefts = np.array([vocab[left] for left, _ in pairs], np.int32)
    rights = np.array([vocab[right] for _, right in pairs], np.int32)
    results = np.array([vocab[left + right] for left, right in pairs], np.int32)
    # In order of the pairs, and of a pair that is there twice the last.
    keys = (lefts.astype(np.int64) << 32 | rights)[::-1]
    ranks = len(pairs) - 1 - np.unique(keys, return_index=True)[1]
    counts = np.bincount(lefts[ranks], minlength=len(texts))
    return PieceTables(
        pieces=np.frombuffer(b"".join(encoded), np.uint8),
        piece_ends=np.cumsum([len(text) for text in encoded], dtype=np.int32),
        merge_ends=np.cumsum(counts, dtype=np.int32),
        merges=np.array([rights[ranks], ranks, results[ranks]], np.int32),
        whole=np.empty(0, np.int32),
    )


def _pairs(merges: list[Any]) -> list[list[str]]:
    """Older files write a merge as one text, and may begin with one that says their version."""
    found = [m for m in merges if not isinstance(m, str) or not m.startswith("#version")]
    return [m.split(" ") if isinstance(m, str) else m for m in found]


def model_of(tables: PieceTables, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a ``tokenizer.json`` with these tables and ``settings``."""
    texts = tables.texts()
    lefts = np.repeat(np.arange(len(tables)), np.diff(tables.merge_ends, prepend=0))
    order = np.argsort(tables.merges[1], kind="stable")
    rights = tables.merges[0]
    return {
        **settings,
        "vocab": {text: number for number, text in enumerate(texts)},
        "merges": [[texts[lefts[i]], texts[rights[i]]] for i in order],
    }
