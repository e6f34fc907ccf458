"""The three ways a weight matrix is stored, and the names, types and shapes each has in a file.

``docs/format.md`` describes the same thing for readers in other languages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

GROUP = 64  # consecutive input columns that share one pair of scale codes
TILE = 64  # rows that lie side by side in a block
PLANE_BYTES = GROUP * TILE * 2 // 8  # both bit planes of a block
BLOCK_BYTES = PLANE_BYTES + 2 * TILE  # and 64 bytes of c1, 64 of c2
INT8_BLOCK_BYTES = GROUP * TILE
MAX_PAIRS = 8
TOKENIZER_PART = "tokenizer.file"  # the array that holds the tokenizer's own file

# How one matrix is stored: an int is the number of plane pairs, two bits a weight each.
Kind = int | Literal["int8", "float16", "float32"]


@dataclass(frozen=True)
class PairTensor:
    """Dual-binary weights: ``w = sum_p row_scale[p, row] * (c1*b1 + c2*b2)``.

    blocks: uint8 ``[pairs, tiles, groups, 1152]``; row_scale: float32 ``[pairs, rows]``.
    """

    blocks: npt.NDArray[np.uint8]
    row_scale: npt.NDArray[np.float32]
    rows: int
    cols: int

    @property
    def pairs(self) -> int:
        return int(self.blocks.shape[0])

    @property
    def kind(self) -> Kind:
        return self.pairs

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + self.row_scale.nbytes

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


def tile_grid(rows: int, cols: int) -> tuple[int, int]:
    """``(tiles, groups)`` that cover ``rows x cols``."""
    return -(-rows // TILE), -(-cols // GROUP)


def linear_parts(name: str, rows: int, cols: int, kind: Kind) -> list[Part]:
    """The arrays that hold matrix ``name`` in a file when it is stored as ``kind``."""
    tiles, groups = tile_grid(rows, cols)
    if kind == "int8":
        return [
            Part(f"{name}.codes", "I8", (tiles, groups, INT8_BLOCK_BYTES)),
            Part(f"{name}.scales", "F32", (tiles, groups, TILE)),
        ]
    if kind == "float16" or kind == "float32":
        return [Part(f"{name}.weight", "F16" if kind == "float16" else "F32", (rows, cols))]
    if type(kind) is not int or not 1 <= kind <= MAX_PAIRS:
        raise ValueError(f"{name}: kind {kind!r} is no number of pairs, int8 or float type")
    return [
        Part(f"{name}.blocks", "U8", (kind, tiles, groups, BLOCK_BYTES)),
        Part(f"{name}.row_scale", "F32", (kind, rows)),
    ]


def linear_arrays(tensor: LinearTensor) -> list[np.ndarray]:
    """The arrays of ``tensor`` in the order of ``linear_parts``."""
    if isinstance(tensor, PairTensor):
        return [tensor.blocks, tensor.row_scale]
    if isinstance(tensor, Int8Tensor):
        return [tensor.codes, tensor.scales]
    return [tensor.weight]
