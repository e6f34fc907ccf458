"""Read a ``.dbb`` model file (``docs/format.md``): believe nothing it says.

``read_dbb`` returns a ``DbbFile`` whose arrays are read-only views of the mapped file, so loading
costs no memory beyond the page cache; or of a copy in memory (``residence.py``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import stat
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import arguments
from ..descriptors import read_at
from ..errors import EdgeDBError, FormatError
from ..files import opened_whole
from ..format.container import PAD_NAME, VERSIONS, Entry, read_header
from ..format.tensors import (
    BLOCK_BYTES,
    DTYPES,
    HALF_BYTES,
    HALF_PART,
    HALF_PLANE_BYTES,
    MAX_PLANES,
    PLANE_BYTES,
    TILE,
    TOKENIZER,
    Experts,
    Kind,
    Part,
    Weight,
    kind_text,
    linear_of,
    linear_parts,
)
from ..strict_json import parse_json
from ..text.piece_tables import ARRAYS as TABLES
from ..text.piece_tables import PieceTables
from ..text.spec import TokenizerSpec
from .config import ModelConfig
from .families import program_of
from .residence import MEMORIES, Bytes, place

T = TypeVar("T")

_MEMORY = arguments.choice(*MEMORIES)

MAX_TOKENIZER_BYTES = 1 << 28
CHUNK_BYTES = 1 << 20  # per check: stays in the cache between checksum and range check


@dataclass(frozen=True)
class DbbFile:
    """An open model file. Arrays are read-only views of its bytes and keep them in memory.

    linears, vectors: every matrix and every norm or bias of the model's program, vectors float32
    ``[n]``; quantization: free JSON, how the file was made; fingerprint: SHA-256 over
    hyper-parameters and the checksums of all tensors, in hexadecimal.
    """

    path: Path
    config: ModelConfig
    quantization: dict[str, Any]
    tokenizer: TokenizerSpec
    linears: dict[str, Weight]
    vectors: dict[str, np.ndarray]
    size_bytes: int
    fingerprint: str  # of everything that decides the numbers: hyper-parameters and data
    memory: str = "map"  # where the bytes lie: map or copy


def read_dbb(path: str | os.PathLike[str], *, verify: bool = True, memory: str = "map") -> DbbFile:
    """Open and validate the model file at ``path``; ``memory`` is that of ``residence.place``.

    Header, shapes, types, scales and norms are always checked; ``verify`` adds the CRC-32 of every
    tensor and the ranges of the integer codes, which reads the whole file once (20 ms for 60 MB
    in the page cache on 2 cores of a server). Raises ``FormatError`` whose one line names the file,
    the tensor and what was expected, ``UnsupportedModelError`` for an intact file that this
    version cannot run, and ``EdgeDBError`` where memory does not hold a copy. A mapped file must
    not be truncated while it is open; replacing it by rename is safe.
    """
    path = arguments.path("path", path)
    memory = _MEMORY("memory", memory)
    try:
        return _read(path, verify, memory)
    except EdgeDBError as error:
        raise type(error)(f"{path}: {error}") from None


def _read(path: Path, verify: bool, memory: str) -> DbbFile:
    with opened_whole(path, lambda info: _refuse(info, path)) as (fd, size):
        _refuse_other_formats(read_at(fd, 8, 0), path)
        placed = place(fd, size, memory)
    metadata, entries, start = read_header(placed.data, size, hint=_conversion(path.parent))
    _refuse_new_parts(metadata["version"], entries)
    source = _Source(placed.data, entries, start)
    config = _decode("config", metadata, ModelConfig.from_dict)
    quantization = parse_json(_entry(metadata, "quantization"), "quantization")
    if not isinstance(quantization, dict):
        raise FormatError("quantization: expected a JSON object")
    checksums = _read_checksums(metadata, entries)

    program = program_of(config)
    stacks = program.stacks()
    if stacks and metadata["version"] != VERSIONS[-1]:
        raise FormatError("header: a model with experts needs version 3")
    linears = {
        name: source.weight(name, rows, cols, stacks.get(name, 0))
        for name, (rows, cols) in program.matrices().items()
    }
    vectors = {name: source.vector(name, n) for name, n in program.vectors().items()}
    tokenizer_data, tables = source.tokenizer()
    source.check_rest()
    if verify:
        source.verify(checksums)
    if tables is not None:
        tables.check()
    tokenizer = _decode(
        "tokenizer", metadata, lambda raw: TokenizerSpec.from_metadata(raw, tokenizer_data, tables)
    )
    identity = json.dumps([config.to_dict(), sorted(checksums.items())], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return DbbFile(
        path,
        config,
        quantization,
        tokenizer,
        linears,
        vectors,
        size,
        fingerprint,
        placed.memory,
    )


def _refuse(info: os.stat_result, path: Path) -> str:
    if stat.S_ISDIR(info.st_mode):
        return f"is a directory, expected a .dbb file; {_conversion(path)}"
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    return "is empty; fetch or export it again"


def _conversion(source: Path) -> str:
    """The command that makes a model of a checkpoint."""
    return f"convert a checkpoint with: edgedb convert {shlex.quote(str(source))} OUT.dbb"


def _refuse_other_formats(magic: bytes, path: Path) -> None:
    if magic.startswith(b"GGUF"):
        raise FormatError(f"is a GGUF file, not a .dbb; {_conversion(path)}")
    if magic.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise FormatError(
            "is a pickle or PyTorch checkpoint, not a .dbb, and pickles run code; "
            "save it as safetensors, then export it"
        )


def _decode(key: str, metadata: dict[str, str], construct: Callable[[Any], T]) -> T:
    try:
        return construct(parse_json(_entry(metadata, key), key))
    except (TypeError, ValueError, OverflowError) as error:
        # A list where a name belongs, or an integer past any float: no list of checks has them all.
        raise FormatError(f"{key}: a value of the wrong kind ({error})") from None


def _entry(metadata: dict[str, str], key: str) -> str:
    if key not in metadata:
        raise FormatError(f"header: metadata {key!r} is missing")
    return metadata[key]


def _read_checksums(metadata: dict[str, str], entries: dict[str, Entry]) -> dict[str, int]:
    raw = parse_json(_entry(metadata, "checksums"), "checksums")
    if not isinstance(raw, dict):
        raise FormatError("checksums: expected a JSON object")
    for name in entries:
        if not isinstance(raw.get(name), str) or not re.fullmatch("[0-9a-f]{8}", raw[name]):
            raise FormatError(f"{name[:80]}: no checksum of eight hex digits in the header")
    return {name: int(raw[name], 16) for name in entries}


def _refuse_new_parts(version: str, entries: dict[str, Entry]) -> None:
    """A reader of version 1 goes by the version alone, so a file may not say less than it needs."""
    for name in entries:
        if name.endswith(HALF_PART) and version == VERSIONS[0]:
            raise FormatError(f"{name[:80]}: half a pair, which needs version 2 in the header")


class _Source:
    """Hands out the tensors of one file by name and remembers which were wanted."""

    def __init__(self, data: Bytes, entries: dict[str, Entry], start: int) -> None:
        self.data, self.entries, self.start = data, entries, start
        self.used: set[str] = set()
        self.code_checks: dict[str, Callable[[np.ndarray], str | None]] = {}

    def array(self, part: Part, hint: str = "") -> np.ndarray:
        """A view of tensor ``part.name``, which must have exactly this type and shape."""
        entry = self.entries.get(part.name)
        if entry is None:
            raise FormatError(f"{part.name}: missing from the file{hint}")
        if entry.dtype != part.dtype:
            raise FormatError(f"{part.name}: dtype {entry.dtype}, expected {part.dtype}")
        if entry.shape != part.shape:
            raise FormatError(
                f"{part.name}: shape {list(entry.shape)}, expected {list(part.shape)}"
            )
        self.used.add(part.name)
        return self._view(entry).reshape(part.shape)

    def _view(self, entry: Entry) -> np.ndarray:
        dtype: np.dtype[Any] = DTYPES[entry.dtype]
        count = math.prod(entry.shape)
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self.data, dtype, count, self.start + entry.begin)

    def weight(self, name: str, rows: int, cols: int, experts: int) -> Weight:
        kind = self._kind(name, experts)
        parts = linear_parts(name, rows, cols, kind, experts)
        arrays = [self.array(part) for part in parts]
        for part, array in zip(parts, arrays, strict=True):
            if part.dtype == "F32" and not part.name.endswith(".weight"):
                _refuse_non_finite(part.name, array)
        if isinstance(kind, int):
            self.code_checks[parts[0].name] = _bad_block_codes
            self.code_checks[name + HALF_PART] = _bad_half_codes
        else:
            check = _bad_int8_codes if kind == "int8" else _bad_weights
            self.code_checks[parts[0].name] = check
        if experts:
            return Experts(tuple(arrays), rows, cols, kind)
        return linear_of(arrays, rows, cols, kind)

    def _kind(self, name: str, experts: int) -> Kind:
        blocks, codes, weight = (f"{name}.{suffix}" for suffix in ("blocks", "codes", "weight"))
        found = [part for part in (blocks, codes, weight) if part in self.entries]
        if not found:
            raise FormatError(
                f"{name}: missing from the file; expected {blocks}, .codes or .weight"
            )
        if len(found) > 1:
            raise FormatError(f"{name}: stored twice, as {found[0]} and {found[1]}")
        entry = self.entries[found[0]]
        if found[0] == codes:
            return "int8"
        if found[0] == weight:
            if entry.dtype not in ("F16", "F32"):
                raise FormatError(f"{weight}: dtype {entry.dtype}, expected F16 or F32")
            return "float16" if entry.dtype == "F16" else "float32"
        pairs = entry.shape[1 if experts and len(entry.shape) > 1 else 0]
        planes = 2 * pairs + (name + HALF_PART in self.entries)
        if not 2 <= planes <= MAX_PLANES:
            raise FormatError(f"{blocks}: {kind_text(planes)}, expected 1 to {MAX_PLANES // 2}")
        return planes

    def vector(self, name: str, n: int) -> np.ndarray:
        weight = self.array(Part(name, "F32", (n,)))
        _refuse_non_finite(name, weight)
        return weight

    def tokenizer(self) -> tuple[bytes, PieceTables | None]:
        """Its own file, and the tables of its pieces if there are any."""
        file = self._at_most(Part(TOKENIZER + "file", "U8", (MAX_TOKENIZER_BYTES,))).tobytes()
        if not any(TOKENIZER + name in self.entries for name in TABLES):
            return file, None
        arrays = {
            name: self._at_most(Part(TOKENIZER + name, *table)) for name, table in TABLES.items()
        }
        return file, PieceTables(**arrays)

    def _at_most(self, part: Part) -> np.ndarray:
        """A view of tensor ``part.name``, whose sizes may be smaller than those of ``part``."""
        entry = self.entries.get(part.name)
        shape = entry.shape if entry else part.shape
        if len(shape) != len(part.shape) or any(map(int.__gt__, shape, part.shape)):
            raise FormatError(
                f"{part.name}: shape {list(shape)}, expected at most {list(part.shape)}"
            )
        return self.array(part._replace(shape=shape))

    def check_rest(self) -> None:
        """Whatever no part of the model asked for must be filler: a few zero bytes."""
        for name in self.entries.keys() - self.used:
            entry = self.entries[name]
            if not name.startswith(PAD_NAME):
                raise FormatError(f"{name[:80]}: a model of this shape has no such tensor")
            if entry.dtype != "U8" or entry.end - entry.begin >= TILE or self._view(entry).any():
                raise FormatError(f"{name[:80]}: filler must be fewer than {TILE} zero bytes")

    def verify(self, checksums: dict[str, int]) -> None:
        """Compare every checksum and range; zlib and numpy let go of the interpreter lock."""
        # Largest first, so that no thread is left with the embedding at the end.
        names = sorted(self.entries, key=lambda n: self.entries[n].begin - self.entries[n].end)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for problem in pool.map(lambda name: self._problem(name, checksums[name]), names):
                if problem:
                    raise FormatError(problem)

    def _problem(self, name: str, expected: int) -> str | None:
        flat = self._view(self.entries[name])
        check = self.code_checks.get(name)
        # Whole blocks, and whole elements of every type.
        step = CHUNK_BYTES // BLOCK_BYTES * BLOCK_BYTES // flat.itemsize
        crc = 0
        wrong = None
        for begin in range(0, len(flat), step):
            chunk = flat[begin : begin + step]
            crc = zlib.crc32(chunk.data, crc)
            wrong = wrong or (check(chunk) if check else None)
        if crc != expected:
            return (
                f"{name[:80]}: checksum {crc:08x}, expected {expected:08x}; "
                "the file is damaged, fetch it again"
            )
        return f"{name[:80]}: {wrong}" if wrong else None


def _refuse_non_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
        value = array.reshape(-1)[index]
        raise FormatError(f"{name}: value {value} at index {index}, expected finite numbers")


def _bad_block_codes(chunk: np.ndarray) -> str | None:
    codes = chunk.reshape(-1, BLOCK_BYTES)[:, PLANE_BYTES:].view(np.int8).reshape(-1, 2, TILE)
    total = codes[:, 0].astype(np.int16) + codes[:, 1]
    if codes.min() == -128 or total.max() > 127 or total.min() < -127:
        return "scale codes outside -127..127"
    return None


def _bad_half_codes(chunk: np.ndarray) -> str | None:
    codes = chunk.reshape(-1, HALF_BYTES)[:, HALF_PLANE_BYTES:].view(np.int8)
    return "scale code -128, expected -127..127" if codes.min() == -128 else None


def _bad_int8_codes(chunk: np.ndarray) -> str | None:
    return "code -128, expected -127..127" if chunk.min() == -128 else None


def _bad_weights(chunk: np.ndarray) -> str | None:
    return None if np.isfinite(chunk).all() else "NaN or infinite weights"
