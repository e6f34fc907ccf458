"""The container of GGUF, versions 2 and 3: metadata, and where each tensor lies.

::

    "GGUF" | version u32 | number of tensors u64 | number of metadata u64
    metadata   key string | type u32 | value
    tensors    name string | number of axes u32 | extents u64, fastest first | type u32 | offset u64
    padding to a multiple of general.alignment (32), then the tensors' data, each padded likewise

A string is its length u64 and UTF-8; an array is the type u32 of its elements, their number u64,
and the elements. Everything is little endian.

Nothing is believed: a length is compared with what is left of the file before anything is made of
it, counts have bounds, and tensors must follow each other as llama.cpp demands. So opening takes
time and memory in proportion to the file, whatever it says. The package ``gguf``, whose own reader
believes the lengths, is asked for the sizes of the types and to dequantize.
"""

from __future__ import annotations

import functools
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, UnsupportedModelError
from ...files import map_file
from .listing import GGUF_PART
from .source import Float32

try:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError:  # an optional dependency of the exporter
    raise UnsupportedModelError("reading GGUF needs the package gguf: pip install gguf") from None

# Bounds of plausibility. The largest published vocabularies have 262,144 tokens and twice as many
# merges, the largest models 2,000 tensors (experts are one).
_MAX_ELEMENTS = 1 << 22  # of all arrays of the metadata together
_MAX_ENTRIES = 1 << 16  # metadata; tensors
_MAX_AXES = 4
_ALIGNMENT = 32  # of files that do not say

# GGUF's number of a type -> struct's letter.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")


@functools.cache
def _dequantizable(kind: GGMLQuantizationType) -> bool:
    """The package keeps no public list: it is tried with one block of zeros."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class StoredTensor(NamedTuple):
    """shape: slowest axis first, as numpy has it; raw: uint8 ``[rows, bytes of the last axis]``, a
    view of the mapped file."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    def unreadable(self) -> str | None:
        """Why ``read`` cannot give this tensor, or None."""
        if _dequantizable(self.type):
            return None
        return f"has type {self.type.name}, which the package gguf cannot dequantize"

    def read(self, start: int, stop: int) -> Float32:
        """Slices ``start`` to ``stop`` of the first axis, dequantized.

        Raises ``UnsupportedModelError`` for a type that the package cannot dequantize.
        """
        flat = len(self.shape) == 1  # one row, of which a part is wanted
        rows_each = math.prod(self.shape[1:-1])
        raw = self.raw if flat else self.raw[start * rows_each : stop * rows_each]
        if reason := self.unreadable():
            raise UnsupportedModelError(reason)
        with np.errstate(over="ignore", invalid="ignore"):  # NaN is refused by whoever stores it
            values = dequantize(raw, self.type)
        values = values.reshape(self.shape if flat else (stop - start, *self.shape[1:]))
        # A file may lay its tensors at any byte.
        return np.require(values[start:stop] if flat else values, np.float32, ["C", "A"])


class GGUFFile:
    """One file: ``metadata`` (key -> value) and ``tensors`` (name -> ``StoredTensor``).

    Values are bool, int, float, str or a list of these; a string that is not UTF-8 stays bytes,
    because most keys are of no interest here. Raises ``FormatError`` for a damaged file and
    ``UnsupportedModelError`` for one of another version or byte order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at, self._elements = 4, 0
        try:
            self._data, self._size = map_file(path, lambda info: "is empty or not a regular file")
            self._read_header()
        except (FormatError, UnsupportedModelError) as error:
            raise type(error)(f"{path.name}: {error}") from None

    def _read_header(self) -> None:
        if self._data[:4] != b"GGUF":
            raise FormatError("not a GGUF file")
        version = self._unpack("I", "the version")
        if version in (2 << 24, 3 << 24):
            raise UnsupportedModelError(
                "a big-endian GGUF; turn it with: gguf-convert-endian FILE little"
            )
        if version not in (2, 3):
            raise FormatError(f"GGUF version {version}; this edgedb reads 2 and 3")
        n_tensors, n_metadata = self._count("tensors"), self._count("metadata")
        self.metadata: dict[str, Any] = {}
        for number in range(n_metadata):
            key = self._name(f"metadata key {number}")
            if key in self.metadata:
                raise FormatError(f"damaged GGUF: metadata {key} is there twice")
            self.metadata[key] = self._value(self._unpack("I", key), key)
        places = [self._tensor_info() for _ in range(n_tensors)]
        self.tensors = self._lay_out(places)

    def _count(self, what: str) -> int:
        count = self._unpack("Q", f"the number of {what}")
        if count > _MAX_ENTRIES:
            raise FormatError(f"damaged GGUF: claims {count} {what}, more than {_MAX_ENTRIES}")
        return count

    def _take(self, size: int, what: str) -> int:
        """Where the next ``size`` bytes begin."""
        begin = self._at
        if size > self._size - begin:
            raise FormatError(
                f"damaged GGUF: {what} ends at byte {begin + size}, the file has {self._size}; "
                "truncated?"
            )
        self._at = begin + size
        return begin

    def _unpack(self, letter: str, what: str) -> Any:
        form = f"<{letter}"
        return struct.unpack_from(form, self._data, self._take(struct.calcsize(form), what))[0]

    def _strings(self, count: int, what: str) -> list[str | bytes]:
        """The next strings: vocabularies have a million of them, so one loop without calls."""
        data, at, size = self._data, self._at, self._size
        found: list[str | bytes] = []
        for _ in range(count):
            begin = at + 8
            end = begin + _U64.unpack_from(data, at)[0] if begin <= size else begin
            if end > size:
                raise FormatError(
                    f"damaged GGUF: {what} ends at byte {end}, the file has {size}; truncated?"
                )
            raw = data[begin:end]
            try:
                found.append(raw.decode())
            except UnicodeDecodeError:
                found.append(raw)
            at = end
        self._at = at
        return found

    def _name(self, what: str) -> str:
        (name,) = self._strings(1, what)
        if isinstance(name, bytes):
            raise FormatError(f"damaged GGUF: {what} is not UTF-8")
        return name

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._strings(1, key)[0]
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind], key)
        if kind != _ARRAY:
            raise FormatError(f"damaged GGUF: {key} has the unknown type {kind}")
        kind, count = self._unpack("I", key), self._unpack("Q", key)
        self._elements += count
        if self._elements > _MAX_ELEMENTS:
            raise FormatError(
                f"damaged GGUF: {key} brings the elements of all arrays to {self._elements}, "
                f"more than {_MAX_ELEMENTS}"
            )
        if kind == _STRING:
            return self._strings(count, key)
        if kind not in _SCALARS:
            raise FormatError(f"damaged GGUF: {key} is an array of the unknown type {kind}")
        dtype = np.dtype("<" + _SCALARS[kind])
        begin = self._take(count * dtype.itemsize, key)
        return np.frombuffer(self._data, dtype, count, begin).tolist() if count else []

    def _tensor_info(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._name("the name of a tensor")
        what = f"tensor {name}"
        n_axes = self._unpack("I", what)
        if not 1 <= n_axes <= _MAX_AXES:
            raise FormatError(f"damaged GGUF: {what} has {n_axes} axes, expected 1 to {_MAX_AXES}")
        extents = [self._unpack("Q", what) for _ in range(n_axes)]
        number, offset = self._unpack("I", what), self._unpack("Q", what)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UnsupportedModelError(
                f"{what} has type {number}, which the package gguf does not know"
            ) from None
        return name, kind, tuple(reversed(extents)), offset

    def _lay_out(
        self, places: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]]
    ) -> dict[str, StoredTensor]:
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise FormatError(f"damaged GGUF: general.alignment {alignment!r} is no power of two")
        start = _align(self._at, alignment)
        tensors: dict[str, StoredTensor] = {}
        expected = 0
        for name, kind, shape, offset in places:
            if name in tensors:
                raise FormatError(f"damaged GGUF: tensor {name} is there twice")
            if 0 in shape:
                raise FormatError(f"damaged GGUF: tensor {name} is empty: shape {list(shape)}")
            if offset != expected:
                raise FormatError(
                    f"damaged GGUF: tensor {name} starts at byte {offset} of the data, "
                    f"expected {expected}"
                )
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise FormatError(
                    f"damaged GGUF: tensor {name} has rows of {shape[-1]} weights, "
                    f"no multiple of {block} ({kind.name})"
                )
            rows, row_bytes = math.prod(shape[:-1]), shape[-1] // block * block_bytes
            self._at = start + offset
            begin = self._take(rows * row_bytes, f"tensor {name}")
            raw = np.frombuffer(self._data, np.uint8, rows * row_bytes, begin)
            tensors[name] = StoredTensor(kind, shape, raw.reshape(rows, row_bytes))
            expected = _align(offset + rows * row_bytes, alignment)
        return tensors


def _align(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def open_parts(path: Path) -> list[GGUFFile]:
    """The file ``path``, or every file of the split model (``split.count``) that it is a part of.

    Raises ``FormatError`` for a part that is missing, of another model, or not where its name says.
    """
    file = GGUFFile(path)
    count = file.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count < 1 << 16:
        raise FormatError(f"{path.name}: damaged GGUF: split.count is {count!r}")
    if count <= 1:
        return [file]
    name = GGUF_PART.fullmatch(path.name)
    if not name or int(name[3]) != count:
        raise FormatError(
            f"{path.name}: one of {count} parts of a model; "
            f"their names must end in -00001-of-{count:05}.gguf and so on"
        )
    paths = [path.with_name(f"{name[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    for part in paths:
        if not part.is_file():
            raise FormatError(f"{part.name} is missing: the model is split into {count} files")
    parts = [GGUFFile(part) for part in paths]
    _check_parts(parts)
    return parts


def _check_parts(parts: list[GGUFFile]) -> None:
    names: set[str] = set()
    for number, part in enumerate(parts):
        found = [part.metadata.get(key) for key in ("split.no", "split.count")]
        if found != [number, len(parts)]:
            raise FormatError(
                f"{part.path.name}: says it is part {found[0]!r} of {found[1]!r}, counted from 0; "
                f"expected {number} of {len(parts)}"
            )
        twice = sorted(names & part.tensors.keys())
        if twice:
            raise FormatError(f"{part.path.name}: tensor {twice[0]} is in an earlier part, too")
        names |= part.tensors.keys()
    total = parts[0].metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise FormatError(
            f"{parts[0].path.name}: says the model has {total!r} tensors; "
            f"its {len(parts)} parts have {len(names)}"
        )
