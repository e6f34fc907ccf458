"""A session on disk: its tokens and what the model made of them (``docs/format.md``).

A safetensors file with the shell of a ``.dbb``: checksummed header and tensors, nothing trusted.
It fits one model only, which it names by the checksum of that model's file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import arguments
from ..errors import ContextFullError, EdgeDBError, FormatError
from ..files import map_file, replacing
from ..format.container import PAD_NAME, Entry, align, lay_out, read_header, render_header
from ..format.tensors import DTYPES, Part
from ..model.kvcache import KVCache
from ..ops.narrow_cache import row_scales
from ..strict_json import parse_json

KIND = "edgedb-session"
VERSION = "1"
# Behind the fingerprint of a model whose context lies beyond its original one (longrope).
BEYOND = "-beyond"
_NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def write_session(
    path: str | os.PathLike[str],
    fingerprint: str,
    tokens: np.ndarray,
    cache: KVCache,
    extra: Mapping[str, Any],
) -> None:
    """Write ``tokens`` int32 ``[n]`` and the filled part of ``cache`` to ``path``.

    The name appears, or changes its content, only when everything is on the disk; only the owner
    may read it. ``extra`` must be JSON. Raises ``EdgeDBError`` if the file cannot be written.
    """
    path = arguments.path("path", path)
    arrays = {"tokens": tokens, **{filled.name: filled.rows for filled in cache.filled()}}
    parts = [Part(name, _NAME_OF_DTYPE[a.dtype], a.shape) for name, a in arrays.items()]
    entries = lay_out(parts)
    try:
        document = json.dumps(dict(extra), allow_nan=False)
        parse_json(document, "extra")  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgeDBError(f"extra: not JSON ({error})") from None
    metadata = {
        "format": KIND,
        "version": VERSION,
        "model": fingerprint,
        "length": str(cache.length),
        "checksums": json.dumps({name: _crc(array) for name, array in arrays.items()}),
        "extra": document,
    }
    header = render_header(metadata, entries)
    try:
        with replacing(path) as file:
            file.write(header)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(bytes(align(array.nbytes) - array.nbytes))
    except OSError as error:
        raise EdgeDBError(f"{path}: cannot be written: {error.strerror or error}") from None


def _crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).data):08x}"


def read_session(
    path: str | os.PathLike[str], fingerprint: str, vocab_size: int, cache: KVCache
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fill ``cache`` from the file; its tokens int32 ``[n]`` and ``extra``.

    Raises ``FormatError`` if the file is damaged, not a session or one of another model or cache
    type, and ``ContextFullError`` if it holds more tokens than ``cache``.
    """
    path = arguments.path("path", path)
    try:
        return _read(path, fingerprint, vocab_size, cache)
    except (FormatError, ContextFullError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read(
    path: Path, fingerprint: str, vocab_size: int, cache: KVCache
) -> tuple[np.ndarray, dict[str, Any]]:
    data, size = map_file(path, lambda info: "is empty or not a regular file")
    metadata, entries, start = read_header(data, size, kind=KIND, versions=(VERSION,))
    saved = metadata.get("model", "")
    if saved != fingerprint:
        if saved.removesuffix(BEYOND) == fingerprint.removesuffix(BEYOND):
            raise FormatError(
                "saved with a context on the other side of the model's original one, where heads "
                "turn otherwise (longrope); load the model with a context as it was"
            )
        raise FormatError("saved with another model; load it with the model that made it")
    extra = parse_json(metadata.get("extra", ""), "extra")
    checksums = parse_json(metadata.get("checksums", ""), "checksums")
    if not isinstance(extra, dict) or not isinstance(checksums, dict):
        raise FormatError("header: extra and checksums must be JSON objects")
    n_tokens = math.prod(entries["tokens"].shape) if "tokens" in entries else 0
    if n_tokens > cache.capacity:
        raise ContextFullError(
            f"holds {n_tokens} tokens, the context only {cache.capacity}; "
            "load the model with a larger context"
        )
    length = metadata.get("length", "")
    if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > n_tokens:
        raise FormatError(f"header: length {length[:20]!r}, expected 0 to {n_tokens}")

    def array(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        entry = entries.get(name)
        if entry is None:
            raise FormatError(f"{name}: missing from the file")
        if DTYPES[entry.dtype] != dtype:
            wanted = _NAME_OF_DTYPE[dtype]
            raise FormatError(f"{name}: dtype {entry.dtype}, this model's cache has {wanted}")
        if entry.shape != shape:
            raise FormatError(f"{name}: shape {list(entry.shape)}, expected {list(shape)}")
        flat = _flat(data, start, entry)
        if checksums.get(name) != _crc(flat):
            raise FormatError(f"{name}: checksum does not match; the file is damaged")
        return flat.reshape(shape)

    tokens = array("tokens", np.dtype(np.int32), (n_tokens,))
    if n_tokens and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        raise FormatError(f"tokens: an id is outside the vocabulary of {vocab_size}")
    cache.reserve(int(length))
    cache.length = int(length)
    names = {"tokens"}
    for filled in cache.filled():
        name = filled.name
        source = array(name, cache.layout.dtype, filled.shape)
        narrow = source.dtype == np.int8
        if not _is_finite(row_scales(source, filled.head_dim) if narrow else source):
            raise FormatError(f"{name}: NaN or infinity")
        filled.put(source)
        names.add(name)
    for name in entries.keys() - names:
        if not name.startswith(PAD_NAME):
            raise FormatError(f"{name[:80]}: a session has no such tensor")
    return tokens, extra


def _flat(data: mmap.mmap, start: int, entry: Entry) -> np.ndarray:
    dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
    if count == 0:
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, count, start + entry.begin)


def _is_finite(array: np.ndarray) -> bool:
    """Whether no element has the largest exponent; on integers, many times faster for float16."""
    bits, exponent = (np.uint16, 0x7C00) if array.dtype == np.float16 else (np.uint32, 0x7F800000)
    return not bool(((array.view(bits) & exponent) == exponent).any())
