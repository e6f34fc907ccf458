"""The three ways a weight matrix is stored, and the names, types and shapes each has in a file.

The matrices of a layer's experts are a stack of one of them.

``docs/format.md`` describes the same thing for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

GROUP = 64  # consecutive input columns that share one pair of scale codes
TILE = 64  # rows that lie side by side in a block
PLANE_BYTES = GROUP * TILE * 2 // 8  # both bit planes of a block
BLOCK_BYTES = PLANE_BYTES + 2 * TILE  # and 64 bytes of c1, 64 of c2
INT8_BLOCK_BYTES = GROUP * TILE
HALF_PLANE_BYTES = PLANE_BYTES // 2  # the one plane of a half block
HALF_BYTES = BLOCK_BYTES // 2  # and 64 bytes of c1
MAX_PLANES = 16
HALF_PART = ".half"  # what the name of an array of half blocks ends with
TOKENIZER = "tokenizer."  # what the names of a tokenizer's arrays begin with

# How one matrix is stored: an int is the number of planes, one bit a weight each. What people type
# and see counts pairs of them: ``planes_of`` and ``kind_text`` are between the two.
Kind = int | Literal["int8", "float16", "float32"]


@dataclass(frozen=True)
class PairTensor:
    """Dual-binary weights: ``w = sum_p row_scale[p, row] * (c1*b1 + c2*b2)``.

    blocks: uint8 ``[pairs, tiles, groups, 1152]``; half: uint8 ``[tiles, groups, 576]``, a last
    pair that has only ``c1*b1``, or None; row_scale: float32 ``[pairs, rows]``, and one row more
    for the half. A file has at least one pair; an operation takes a half alone, too.
    """

    blocks: npt.NDArray[np.uint8]
    row_scale: npt.NDArray[np.float32]
    rows: int
    cols: int
    half: npt.NDArray[np.uint8] | None = None

    @property
    def pairs(self) -> int:
        """Whole pairs."""
        return int(self.blocks.shape[0])

    @property
    def planes(self) -> int:
        """Two for a pair, one for a half."""
        return 2 * self.pairs + (self.half is not None)

    def terms(self) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]:
        """What adds up to the weights, in order: ``[tiles, groups, 1152]`` of each pair, then
        ``[tiles, groups, 576]`` of the half, each with its row scales ``[rows]``."""
        blocks = [*self.blocks] if self.half is None else [*self.blocks, self.half]
        return zip(blocks, self.row_scale, strict=True)

    @property
    def kind(self) -> Kind:
        return self.planes

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in linear_arrays(self))

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.rows * self.cols)


@dataclass(frozen=True)
class Int8Tensor:
    """8-bit weights with one float32 scale for 64 columns: ``w = scale * code``.

    codes: int8 ``[tiles, groups, 4096]``; scales: float32 ``[tiles, groups, 64]``.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    rows: int
    cols: int

    @property
    def kind(self) -> Kind:
        return "int8"

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.rows * self.cols)


@dataclass(frozen=True)
class DenseTensor:
    """Plain float32 or float16 weights ``[rows, cols]``."""

    weight: npt.NDArray[np.float32] | npt.NDArray[np.float16]

    @property
    def rows(self) -> int:
        return int(self.weight.shape[0])

    @property
    def cols(self) -> int:
        return int(self.weight.shape[1])

    @property
    def kind(self) -> Kind:
        return "float16" if self.weight.dtype == np.float16 else "float32"

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.rows * self.cols)


LinearTensor = PairTensor | Int8Tensor | DenseTensor


@dataclass(frozen=True)
class Experts:
    """The matrices of a layer's experts, all ``rows x cols`` and stored alike.

    arrays: those of ``linear_parts``, each with an axis of experts before its own: the bytes of an
    expert lie together in each of them.
    """

    arrays: tuple[np.ndarray, ...]
    rows: int
    cols: int
    kind: Kind

    def __len__(self) -> int:
        """How many experts."""
        return len(self.arrays[0])

    def __getitem__(self, expert: int) -> LinearTensor:
        """One expert's matrix, a view. Raises ``IndexError`` where there is no such expert."""
        return linear_of([array[expert] for array in self.arrays], self.rows, self.cols, self.kind)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def expert_bytes(self) -> int:
        """Of one expert."""
        return self.nbytes // len(self)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (len(self) * self.rows * self.cols)


Weight = LinearTensor | Experts


class Part(NamedTuple):
    """One array of the file."""

    name: str
    dtype: str  # safetensors' name of the type
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = DTYPES[self.dtype].itemsize
        for extent in self.shape:
            size *= extent
        return size


DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


def type_of(array: np.ndarray) -> str:
    """safetensors' name of an array's type, which must be one of ``DTYPES``."""
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def tile_grid(rows: int, cols: int) -> tuple[int, int]:
    """``(tiles, groups)`` that cover ``rows x cols``."""
    return -(-rows // TILE), -(-cols // GROUP)


def linear_parts(name: str, rows: int, cols: int, kind: Kind, experts: int = 0) -> list[Part]:
    """The arrays that hold matrix ``name`` in a file when it is stored as ``kind``; of a stack with
    so many ``experts``, each has an axis for them."""
    if experts:
        parts = linear_parts(name, rows, cols, kind)
        return [part._replace(shape=(experts, *part.shape)) for part in parts]
    tiles, groups = tile_grid(rows, cols)
    if kind == "int8":
        return [
            Part(f"{name}.codes", "I8", (tiles, groups, INT8_BLOCK_BYTES)),
            Part(f"{name}.scales", "F32", (tiles, groups, TILE)),
        ]
    if kind == "float16" or kind == "float32":
        return [Part(f"{name}.weight", "F16" if kind == "float16" else "F32", (rows, cols))]
    if type(kind) is not int or not 2 <= kind <= MAX_PLANES:
        raise ValueError(f"{name}: kind {kind!r} is no number of planes, int8 or float type")
    pairs, half = divmod(kind, 2)
    parts = [
        Part(f"{name}.blocks", "U8", (pairs, tiles, groups, BLOCK_BYTES)),
        Part(f"{name}.row_scale", "F32", (pairs + half, rows)),
    ]
    return [*parts, Part(name + HALF_PART, "U8", (tiles, groups, HALF_BYTES))] if half else parts


def linear_of(arrays: Sequence[np.ndarray], rows: int, cols: int, kind: Kind) -> LinearTensor:
    """The matrix that these ``arrays``, in the order of ``linear_parts``, are."""
    if kind == "int8":
        return Int8Tensor(arrays[0], arrays[1], rows, cols)
    if isinstance(kind, str):
        return DenseTensor(arrays[0])
    return PairTensor(arrays[0], arrays[1], rows, cols, *arrays[2:])


def linear_arrays(tensor: Weight) -> list[np.ndarray]:
    """The arrays of ``tensor`` in the order of ``linear_parts``."""
    if isinstance(tensor, Experts):
        return list(tensor.arrays)
    if isinstance(tensor, PairTensor):
        arrays: list[np.ndarray] = [tensor.blocks, tensor.row_scale]
        return arrays if tensor.half is None else [*arrays, tensor.half]
    if isinstance(tensor, Int8Tensor):
        return [tensor.codes, tensor.scales]
    return [tensor.weight]


def planes_of(pairs: float) -> int:
    """Planes of so many pairs: 3 of 1.5. Raises ``ValueError`` for what no file holds."""
    if not 1 <= pairs <= MAX_PLANES / 2 or 2 * pairs % 1:
        raise ValueError(f"{pairs} pairs: expected 1 to {MAX_PLANES // 2} in steps of a half")
    return int(2 * pairs)


def kind_text(kind: Kind) -> str:
    """``1 pair`` of 2 planes, ``1.5 pairs`` of 3; the name of any other kind."""
    if isinstance(kind, str):
        return kind
    return f"{kind // 2}{'.5' if kind % 2 else ''} pair{'' if kind == 2 else 's'}"
