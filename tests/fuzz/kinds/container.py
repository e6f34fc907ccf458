"""The shell that ``.dbb`` and session files share, taken apart, changed, and made whole again."""

from __future__ import annotations

import json
import zlib
from random import Random
from typing import Any

from edgedb.format.container import ALIGNMENT, CRC_START, PAD_NAME, PREFIX

from .. import mutators

_HEADS = (b"", b"\0" * 8, b"\xff" * 8, b"GGUF", b"PK\x03\x04", b"\x80\x04", PREFIX)


class Container:
    """A file of named arrays with JSON texts in its metadata (those called ``nested``)."""

    def __init__(self, raw: bytes, nested: tuple[str, ...]) -> None:
        start = 8 + int.from_bytes(raw[:8], "little")
        document = json.loads(raw[8:start])
        self.metadata: dict[str, Any] = document.pop("__metadata__")
        self.metadata.pop("header_crc32")
        self.texts = {key: json.loads(self.metadata.pop(key)) for key in nested}
        self.texts.pop("checksums")
        self.entries: dict[str, Any] = document
        self.body = bytearray(raw[start:])

    def part(self, name: str) -> bytes:
        begin, end = self.entries[name]["data_offsets"]
        return bytes(self.body[begin:end])

    def replace_part(self, name: str, content: bytes) -> None:
        """Give a one-dimensional array of bytes another content, moving what lies behind it."""
        kept = [
            (key, entry, content if key == name else self.part(key))
            for key, entry in sorted(
                self.entries.items(), key=lambda item: item[1]["data_offsets"][0]
            )
            if not key.startswith(PAD_NAME)
        ]
        self.entries, self.body = {}, bytearray()
        for number, (key, entry, data) in enumerate(kept):
            begin = len(self.body)
            self.body += data
            shape = [len(data)] if key == name else entry["shape"]
            end = len(self.body)
            self.entries[key] = {**entry, "shape": shape, "data_offsets": [begin, end]}
            pad = -end % ALIGNMENT
            if pad:
                self.entries[f"{PAD_NAME}{number}"] = {
                    "dtype": "U8", "shape": [pad], "data_offsets": [end, end + pad]
                }  # fmt: skip
                self.body += bytes(pad)

    def change_header(self, rng: Random) -> None:
        where = rng.randrange(4)
        if where == 0:
            self.metadata = mutators.document(rng, self.metadata)
        elif where == 1:
            self.entries = mutators.document(rng, self.entries)
        else:
            key = rng.choice(list(self.texts))
            self.texts[key] = mutators.document(rng, self.texts[key])

    def change_data(self, rng: Random, names: list[str] | None = None) -> None:
        """Other bytes in some of the arrays, or in those of these ``names``; the sizes stay,
        mostly."""
        some = list(self.entries)
        for name in names or [rng.choice(some) for _ in range(rng.choice((1, 1, 2, 5)))]:
            entry = self.entries[name]
            begin, end = entry["data_offsets"]
            changed = mutators.data(rng, bytes(self.body[begin:end]))
            if len(changed) == end - begin or rng.random() < 0.05:
                self.body[begin:end] = changed
            else:
                self.body[begin:end] = changed[: end - begin].ljust(end - begin, b"\xff")

    def sealed(self, rng: Random) -> bytes:
        """The file with all checksums right."""
        checksums = {}
        if isinstance(self.entries, dict):
            checksums = {name: self._crc(entry) for name, entry in self.entries.items()}
            entries = self.entries
        else:
            entries = {"entries": self.entries}
        if not isinstance(self.metadata, dict):
            return self._seal(mutators.encoded(mutators.dumps(rng, self.metadata)))
        texts = {key: mutators.dumps(rng, value) for key, value in self.texts.items()}
        texts["checksums"] = json.dumps(checksums)
        metadata = {"header_crc32": "0" * 8, **self.metadata, **texts}
        written = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"))
        return self._seal(mutators.encoded(written))

    def _crc(self, entry: Any) -> str:
        try:
            begin, end = entry["data_offsets"]
            return f"{zlib.crc32(self.body[begin:end]):08x}"
        except (TypeError, ValueError, KeyError, IndexError):
            return "0" * 8

    def _seal(self, written: bytes) -> bytes:
        size = -(-(8 + len(written)) // ALIGNMENT) * ALIGNMENT
        header = bytearray((size - 8).to_bytes(8, "little") + written.ljust(size - 8))
        if header[8:CRC_START] == PREFIX:
            header[CRC_START : CRC_START + 8] = b"00000000"
            header[CRC_START : CRC_START + 8] = b"%08x" % zlib.crc32(header)
        return bytes(header + self.body)


def damaged(rng: Random, raw: bytes) -> bytes:
    """A copy whose checksums no longer fit, or that is no such file at all."""
    if rng.random() < 0.2:
        return (
            rng.choice(_HEADS) + raw[rng.randrange(len(raw)) :][: rng.choice((0, 7, 100, 1 << 20))]
        )
    return mutators.data(rng, raw)
