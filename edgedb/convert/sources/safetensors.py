"""Reading safetensors one tensor (or some of its rows) at a time, bfloat16 included.

The ``safetensors`` package cannot hand bfloat16 to numpy, which has no such type. Ranges are read,
not mapped, so that the process holds one tensor at a time and not every page it has ever touched.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, UnsupportedModelError
from ...files import open_regular
from ...strict_json import parse_json

# safetensors' own limit on the length of its JSON header.
_MAX_HEADER_BYTES = 100_000_000
_MAX_AXES = 8
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class SafetensorsFile:
    """Header of one safetensors file; ``shapes`` maps names to shapes, ``read`` gives float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise FormatError(f"{path.name}: truncated, or not a safetensors file")
            header = parse_json(file.read(length), f"{path.name}: safetensors header")
        if not isinstance(header, dict):
            raise FormatError(f"{path.name}: the safetensors header is not a JSON object")
        header.pop("__metadata__", None)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[str, int]] = {}
        ranges = [self._add(name, entry, 8 + length) for name, entry in header.items()]
        # As the format has it: tensors follow each other without gap or overlap, to the end.
        position = 0
        for start, stop, name in sorted(ranges):
            if start != position:
                raise FormatError(
                    f"{path.name}: tensor {name} starts at byte {start} of the data, "
                    f"expected {position}"
                )
            position = stop
        if position != size - 8 - length:
            raise FormatError(
                f"{path.name}: the data is {size - 8 - length} bytes, the tensors need {position}; "
                "truncated?"
            )

    def _add(self, name: str, entry: Any, data_start: int) -> tuple[int, int, str]:
        """Take one entry of the header; returns its range of bytes, and the name."""
        try:
            dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sound = isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= _MAX_AXES
            sound = sound and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
            sound = sound and type(start) is type(stop) is int and 0 <= start <= stop
        except (LookupError, TypeError, ValueError):
            sound = False
        if not sound:
            raise FormatError(f"{self.path.name}: tensor {name} has a damaged header")
        item_bytes = np.dtype(_DTYPES.get(dtype, "u1")).itemsize
        if dtype in (*_DTYPES, "U8") and stop - start != math.prod(shape) * item_bytes:
            raise FormatError(f"{self.path.name}: tensor {name} has a size unlike its shape")
        self.shapes[name] = tuple(shape)
        self._where[name] = (dtype, data_start + start)
        return start, stop, name

    def unreadable(self, name: str) -> str | None:
        """Why ``read`` cannot give this tensor, or None."""
        dtype, _ = self._where[name]
        if dtype in _DTYPES:
            return None
        return f"is {dtype}; export from BF16, F16 or F32 weights"

    def read(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` (first axis) of one tensor, as float32."""
        dtype, _ = self._where[name]
        if reason := self.unreadable(name):
            raise UnsupportedModelError(f"{self.path.name}: tensor {name} {reason}")
        raw = self._rows(name, np.dtype(_DTYPES[dtype]), start, stop)
        if dtype == "BF16":
            # A bfloat16 is the upper half of the float32 with the same value.
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32, copy=False)

    def no_bytes(self, name: str) -> str | None:
        """Why ``read_bytes`` cannot give this tensor, or None."""
        dtype, _ = self._where[name]
        return None if dtype == "U8" else f"is {dtype}, expected bytes"

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` (first axis) of a tensor of bytes."""
        return self._rows(name, np.dtype(np.uint8), start, stop)

    def _rows(self, name: str, stored: np.dtype[Any], start: int, stop: int) -> NDArray[Any]:
        _, offset = self._where[name]
        row_size = math.prod(self.shapes[name][1:])
        raw = np.fromfile(
            self.path,
            dtype=stored,
            count=(stop - start) * row_size,
            offset=offset + start * row_size * stored.itemsize,
        )
        if raw.size != (stop - start) * row_size:
            raise FormatError(f"{self.path.name}: tensor {name} is cut off; the file has changed")
        return raw.reshape(stop - start, *self.shapes[name][1:])
