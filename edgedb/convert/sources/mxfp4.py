"""MXFP4 in safetensors, as gpt-oss is published: two tensors in the place of one.

``NAME_blocks`` is uint8 ``[experts, rows, cols / 32, 16]``, two 4-bit floats a byte (of the lower
column first), and ``NAME_scales`` uint8 ``[experts, rows, cols / 32]``: exponents of two, 127 more
than they are (OCP Microscaling Formats 1.0). Read as NAME, ``[experts, cols, rows]``, which is how
the same checkpoint looks in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .safetensors import SafetensorsFile
from .source import Float32

_BLOCKS, _SCALES = "_blocks", "_scales"
_GROUP = 32
# Bit 3 is the sign.
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_VALUES, -_VALUES])

Stored = tuple[SafetensorsFile, str]  # what holds a tensor, and under which name


class Mxfp4Tensors:
    """What ``SafetensorsFile`` offers, for the tensors that are packed."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        """``stored``: all tensors of a checkpoint; which of them are packed is seen by their names
        and shapes."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, tuple[Stored, Stored]] = {}
        for name, blocks in stored.items():
            stem = name.removesuffix(_BLOCKS)
            scales = stored.get(stem + _SCALES)
            if stem == name or stem in stored or scales is None:
                continue
            shape, scale_shape = (file.shapes[own] for file, own in (blocks, scales))
            if len(shape) == 4 and shape == (*scale_shape, _GROUP // 2):
                experts, rows, groups = scale_shape
                self.shapes[stem] = (experts, groups * _GROUP, rows)
                self._parts[stem] = blocks, scales

    def parts(self) -> set[str]:
        """Names of the tensors that hold the packed ones."""
        return {name + end for name in self._parts for end in (_BLOCKS, _SCALES)}

    def unreadable(self, name: str) -> str | None:
        """Why ``read`` cannot give this tensor, or None."""
        for file, own in self._parts[name]:
            if reason := file.no_bytes(own):
                return reason
        return None

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Experts ``start`` to ``stop``, float32 ``[n, cols, rows]``."""
        (blocks, of_blocks), (scales, of_scales) = self._parts[name]
        packed = blocks.read_bytes(of_blocks, start, stop)
        exponents = scales.read_bytes(of_scales, start, stop)[..., None].astype(np.int32) - 127
        values = np.empty((*packed.shape[:-1], _GROUP), np.float32)
        values[..., 0::2] = _VALUES[packed & 15]
        values[..., 1::2] = _VALUES[packed >> 4]
        with np.errstate(over="ignore"):  # what is infinite is refused by whoever stores it
            values = np.ldexp(values, exponents)
        rows = values.reshape(*values.shape[:2], -1)
        return np.ascontiguousarray(rows.swapaxes(1, 2))
