"""What a program is bound to: matrices, vectors, rotary tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import FormatError
from ..format.tensors import Experts, Weight
from .program import Program
from .selection import Floats
from .values import RopeTable


class Table(Protocol):
    """cos and sin of a ``RopeTable``, float32 ``[positions, head_dim / 2]``; the rows of a pass are
    ready before it begins."""

    cos: Floats
    sin: Floats


@dataclass(frozen=True)
class Weights:
    """linears: every name of ``Program.matrices()``, ``Experts`` where that is a stack; vectors:
    of ``Program.vectors()``."""

    linears: Mapping[str, Weight]
    vectors: Mapping[str, np.ndarray]
    tables: Mapping[RopeTable, Table]


def check(program: Program, weights: Weights) -> None:
    """Raises ``FormatError`` naming the first weight that is missing or has another shape."""
    stacks = program.stacks()
    for name, shape in program.matrices().items():
        tensor = weights.linears.get(name)
        if tensor is None:
            raise FormatError(f"{name}: matrix {list(shape)} is missing")
        if (tensor.rows, tensor.cols) != shape:
            raise FormatError(
                f"{name}: {tensor.rows} x {tensor.cols}, the program multiplies "
                f"{shape[0]} x {shape[1]}"
            )
        found = len(tensor) if isinstance(tensor, Experts) else 0
        if found != stacks.get(name, 0):
            raise FormatError(f"{name}: {found} experts, the program has {stacks.get(name, 0)}")
    for name, length in program.vectors().items():
        vector = weights.vectors.get(name)
        if vector is None or vector.shape != (length,):
            raise FormatError(f"{name}: a vector of {length} is missing")
