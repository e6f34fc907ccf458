"""The outer shell of a ``.dbb`` and of a saved session: a safetensors header with a fixed opening
and a checksum.

``[8 bytes: header length N, little endian][N bytes: JSON, space padded][data]``, with ``8 + N`` a
multiple of 64. The JSON opens with ``PREFIX`` and eight hex digits: the CRC-32 of the first
``8 + N`` bytes, taken with those digits as ``00000000``. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FormatError
from ..strict_json import parse_json, refuse_many_values
from .tensors import DTYPES, Part

ALIGNMENT = 64
VERSIONS = ("1", "2", "3")  # of a .dbb; 2 has half pairs, 3 stacks of experts
MAX_AXES = 5  # of a stack of pairs
# A 405B model needs 0.3 MB; the cap only bounds what parsing hostile JSON may cost.
MAX_HEADER_BYTES = 16 << 20
PREFIX = b'{"__metadata__":{"header_crc32":"'
CRC_START = 8 + len(PREFIX)
PAD_NAME = "pad."  # filler tensors keep the next one aligned, because safetensors forbids gaps


class Entry:
    """One tensor of the header: type (safetensors' name), shape, bytes ``[begin, end)``."""

    __slots__ = ("begin", "dtype", "end", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> None:
        self.dtype, self.shape, self.begin, self.end = dtype, shape, begin, end


def align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def lay_out(parts: Sequence[Part]) -> dict[str, Entry]:
    """Place ``parts`` one after another on 64-byte boundaries, with filler named ``pad.N``."""
    entries: dict[str, Entry] = {}
    offset = 0
    n_pads = 0
    for part in parts:
        end = offset + part.nbytes
        entries[part.name] = Entry(part.dtype, part.shape, offset, end)
        offset = align(end)
        if offset > end:
            entries[f"{PAD_NAME}{n_pads}"] = Entry("U8", (offset - end,), end, offset)
            n_pads += 1
    return entries


def render_header(
    metadata: Mapping[str, str], entries: Mapping[str, Entry], reserved: int = 0
) -> bytes:
    """The file's bytes up to the data: at least ``reserved`` of them, a multiple of 64."""
    tensors = {
        name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
        for name, e in entries.items()
    }
    document = {"__metadata__": {"header_crc32": "0" * 8, **metadata}, **tensors}
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    size = align(max(8 + len(text), reserved))
    if size - 8 > MAX_HEADER_BYTES:
        raise FormatError(f"header: {size} bytes, more than the format's {MAX_HEADER_BYTES}")
    refuse_many_values(text, "header")
    header = (size - 8).to_bytes(8, "little") + text.ljust(size - 8)
    crc = b"%08x" % zlib.crc32(header)
    return header[:CRC_START] + crc + header[CRC_START + 8 :]


def read_header(
    data: Any, size: int, *, kind: str = "dbb", versions: Sequence[str] = VERSIONS, hint: str = ""
) -> tuple[dict[str, str], dict[str, Entry], int]:
    """Read and check the header of a file of ``size`` bytes held in ``data`` (bytes or mmap).

    ``kind`` and one of ``versions`` are what its metadata must say; ``hint`` is what to do with a
    checkpoint of safetensors, which looks alike.

    Returns the metadata, the tensors by name, and the offset of the data. Checked here: length,
    checksum, JSON, types, shapes against byte counts, alignment, and that the tensors cover the
    data exactly, in any order, without gap or overlap. Raises ``FormatError``.
    """
    if size < 8:
        raise FormatError(f"not a {_noun(kind)}, or truncated: {size} bytes, a header needs more")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"not a {_noun(kind)}, or damaged: its header would have {length} bytes, more than the "
            f"{MAX_HEADER_BYTES} allowed"
        )
    start = 8 + length
    if start > size:
        raise FormatError(
            f"header: claims {length} bytes, but the file ends after {size}; truncated?"
        )
    header = bytes(data[:start])
    if header[8:CRC_START] != PREFIX:
        raise FormatError(_explain_foreign_header(header[8:], kind, hint))
    stored = header[CRC_START : CRC_START + 8]
    zeroed = header[:CRC_START] + b"0" * 8 + header[CRC_START + 8 :]
    if stored != b"%08x" % zlib.crc32(zeroed):
        raise FormatError(
            "header: its checksum does not match; the file is damaged, fetch it again"
        )
    document = parse_json(header[8:], "header")
    metadata = document.pop("__metadata__")
    for key, value in metadata.items():
        if type(value) is not str:
            raise FormatError(f"header: metadata {key[:80]!r} is not a string")
    if metadata.get("format") != kind:
        raise FormatError(
            f"header: format is {str(metadata.get('format'))[:40]!r}, expected {kind!r}"
        )
    if metadata.get("version") not in versions:
        raise FormatError(
            f"header: version {str(metadata.get('version'))[:20]!r}; "
            f"this edgedb reads {', '.join(versions)}"
        )
    if start % ALIGNMENT:
        raise FormatError(f"header: data starts at byte {start}, no multiple of {ALIGNMENT}")
    entries = {name: _read_entry(name, raw) for name, raw in document.items()}
    _check_cover(entries, size - start)
    return metadata, entries, start


def _noun(kind: str) -> str:
    return ".dbb file" if kind == "dbb" else f"file of the kind {kind}"


def _explain_foreign_header(text: bytes, kind: str, hint: str) -> str:
    if kind != "dbb":
        return f"not a {_noun(kind)}"
    if not text.startswith(b"{"):
        return "not a .dbb file: it does not start with a safetensors header"
    try:
        document = parse_json(text, "header")
        metadata = document.get("__metadata__", {})
        if metadata.get("format") != "dbb" and "header_crc32" not in metadata:
            return f"a safetensors checkpoint, not a .dbb; {hint}"
    except (FormatError, AttributeError):
        pass
    return "header: it does not open as a .dbb header must; the file is damaged, fetch it again"


def _read_entry(name: str, raw: object) -> Entry:
    shown = name[:80]
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{shown}: expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(
            f"{shown}: dtype {str(dtype)[:20]!r}, expected one of {', '.join(DTYPES)}"
        )
    # Python integers do not overflow: a product of sizes is compared with the bytes as it is.
    if not _is_sizes(shape) or not 1 <= len(shape) <= MAX_AXES:
        raise FormatError(f"{shown}: shape {str(shape)[:60]} is no list of 1 to {MAX_AXES} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{shown}: data_offsets {str(offsets)[:60]} are no range of bytes")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise FormatError(
            f"{shown}: {dtype} {shape} needs {expected} bytes, found {offsets[1] - offsets[0]}"
        )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _check_cover(entries: Mapping[str, Entry], size: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        shown = name[:80]
        if entry.begin != position:
            raise FormatError(
                f"{shown}: starts at byte {entry.begin} of the data, expected {position}; "
                "tensors must follow each other without gap or overlap"
            )
        position = entry.end
        if position > size:
            raise FormatError(
                f"{shown}: ends at byte {position} of the data, which has {size}; truncated?"
            )
        if entry.begin % ALIGNMENT and not name.startswith(PAD_NAME):
            raise FormatError(
                f"{shown}: starts at byte {entry.begin} of the data, no multiple of {ALIGNMENT}"
            )
    if position != size:
        raise FormatError(f"the data is {size} bytes, but the tensors cover {position}")
