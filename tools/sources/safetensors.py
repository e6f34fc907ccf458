"""Reading safetensors one tensor (or some of its rows) at a time, bfloat16 included.

The ``safetensors`` package cannot hand bfloat16 to numpy, which has no such type. Ranges are read,
not mapped, so that the process holds one tensor at a time and not every page it has ever touched.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedb.errors import FormatError, UnsupportedModelError

# safetensors' own limit on the length of its JSON header.
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class SafetensorsFile:
    """Header of one safetensors file; ``shapes`` maps names to shapes, ``read`` gives float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise FormatError(f"{path.name}: truncated, or not a safetensors file")
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError):
                raise FormatError(f"{path.name}: the safetensors header is not JSON") from None
        if not isinstance(header, dict):
            raise FormatError(f"{path.name}: the safetensors header is not a JSON object")
        header.pop("__metadata__", None)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[str, int]] = {}
        for name, entry in header.items():
            self._add(name, entry, data_start=8 + length, data_bytes=size - 8 - length)

    def _add(self, name: str, entry: Any, *, data_start: int, data_bytes: int) -> None:
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            start, stop = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError):  # the last for Infinity
            raise FormatError(f"{self.path.name}: tensor {name} has a damaged header") from None
        if min(shape, default=0) < 0 or not 0 <= start <= stop <= data_bytes:
            raise FormatError(f"{self.path.name}: tensor {name} lies outside the file")
        if (
            dtype in _DTYPES
            and stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        ):
            raise FormatError(f"{self.path.name}: tensor {name} has a size unlike its shape")
        self.shapes[name] = shape
        self._where[name] = (dtype, data_start + start)

    def unreadable(self, name: str) -> str | None:
        """Why ``read`` cannot give this tensor, or None."""
        dtype, _ = self._where[name]
        if dtype in _DTYPES:
            return None
        return f"is {dtype}; export from BF16, F16 or F32 weights"

    def read(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` (first axis) of one tensor, as float32."""
        dtype, offset = self._where[name]
        if reason := self.unreadable(name):
            raise UnsupportedModelError(f"{self.path.name}: tensor {name} {reason}")
        row_size = math.prod(self.shapes[name][1:])
        stored = np.dtype(_DTYPES[dtype])
        raw = np.fromfile(
            self.path,
            dtype=stored,
            count=(stop - start) * row_size,
            offset=offset + start * row_size * stored.itemsize,
        )
        if dtype == "BF16":
            # A bfloat16 is the upper half of the float32 with the same value.
            values = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = raw.astype(np.float32, copy=False)
        return values.reshape(stop - start, *self.shapes[name][1:])
