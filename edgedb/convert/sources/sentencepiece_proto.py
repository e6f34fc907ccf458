"""Parts of a SentencePiece ModelProto in protobuf's wire format (sentencepiece_model.proto).

A tokenizer needs ten of its fields; the protobuf package would be a dependency for them alone.
Messages are joined by writing one after the other.
"""

from __future__ import annotations

import struct

# The types of a piece, which are also the values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def piece(token: str, score: float, kind: int) -> bytes:
    """One more piece of the vocabulary."""
    return message(1, text(1, token) + _float(2, score) + integer(3, kind))


def integer(field: int, number: int) -> bytes:
    """A field that holds an integer or a truth value."""
    return _varint(field << 3) + _varint(number)


def message(field: int, body: bytes) -> bytes:
    """A field that holds another message, or bytes."""
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """A field that holds a string."""
    return message(field, value.encode())


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative int32 are sign-extended to ten bytes
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
