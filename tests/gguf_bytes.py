"""GGUF files byte by byte, for what no writer would write."""

from __future__ import annotations

import struct
from typing import Any

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    return text(value) if kind == STRING else struct.pack("<" + _LETTERS[kind], value)


def entry(key: str | bytes, kind: int, value: Any) -> bytes:
    """One metadata entry; ``value`` as bytes is taken as it is, unless it is a string's."""
    raw = value if isinstance(value, bytes) and kind != STRING else scalar(kind, value)
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, values: list[Any], *, count: int | None = None) -> bytes:
    """The value of an array entry; ``count`` is what it claims to hold."""
    claimed = len(values) if count is None else count
    return struct.pack("<IQ", kind, claimed) + b"".join(scalar(kind, v) for v in values)


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a file says about a tensor; ``shape`` is numpy's, 0 the type F32."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def file(
    entries: list[bytes],
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; ``counts`` are the numbers of tensors and of entries that it claims."""
    tensors = tensors or []
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries))))
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
