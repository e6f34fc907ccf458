"""Write a ``.dbb`` one tensor at a time, so that an interrupted export resumes where it stopped.

Data goes to ``OUT.partial`` at its final place, and each finished tensor is one line of
``OUT.partial.json``. A resumed run believes a line only if the checksum of the bytes agrees, so
neither a kill nor a power failure needs costly flushes in between. The final name appears by one
rename, after the reader has opened the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .. import descriptors
from ..errors import EdgeDBError, FormatError, UnsupportedModelError
from ..format.container import Entry, lay_out, render_header
from ..format.tensors import DTYPES, Kind, LinearTensor, Part, Weight, kind_text, linear_arrays
from ..text.spec import TokenizerSpec
from .config import ModelConfig
from .dbb_plan import (
    RECORD_BYTES,
    RECORD_BYTES_PER_LINEAR,
    TOKENIZER_NAME,
    planned,
    version_of,
)


class DbbWriter:
    """Write a model file in pieces::

        with DbbWriter(path, config, tokenizer, kinds, fingerprint="...") as writer:
            for name in writer.remaining:
                writer.put(name, tensor, {"error": 0.01})
            writer.finish({"group": 64})

    kinds: for every name of ``program_of(config).matrices()`` the number of planes (2 for a pair,
    3 for one and a half), ``"int8"``, ``"float16"`` or ``"float32"``. fingerprint: identifies
    source and options; a partial file of another fingerprint is discarded. Leaving the ``with``
    block early keeps the partial file for the next run. Raises ``EdgeDBError`` when the disk is
    full or another process writes the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: ModelConfig,
        tokenizer: TokenizerSpec,
        kinds: Mapping[str, Kind],
        *,
        fingerprint: str = "",
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.journal = self.path.with_name(self.path.name + ".partial.json")
        self._grown = self.path.with_name(self.path.name + ".partial.grown")
        self._kinds = dict(kinds)
        self._parts = planned(config, tokenizer, self._kinds)
        flat = [part for parts in self._parts.values() for part in parts]
        self._entries = lay_out(flat)
        self._size = max(entry.end for entry in self._entries.values())
        self._metadata = {
            "format": "dbb",
            "version": version_of(config, flat),
            "config": json.dumps(config.to_dict()),
            "tokenizer": json.dumps(tokenizer.to_metadata()),
        }
        filler = self._entries.keys() - {part.name for part in flat}
        self._crcs = {
            name: zlib.crc32(bytes(self._entries[name].end - self._entries[name].begin))
            for name in filler
        }
        self._records: dict[str, dict[str, Any]] = {}
        self._stack: list[dict[str, int]] = []  # checksums after each expert of a stack so far
        room = RECORD_BYTES + RECORD_BYTES_PER_LINEAR * len(self._kinds)
        self._data_start = len(self._render({"_": "x" * room}, dict.fromkeys(self._entries, 0)))
        arrays = tokenizer.arrays()
        hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays.values()]
        plan = [fingerprint, self._metadata, hashes, list(self._entries), self._data_start]
        self._key = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        self._fd = -1
        try:
            self._open()
            if TOKENIZER_NAME not in self._records:
                self._write(TOKENIZER_NAME, list(arrays.values()), {})
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> set[str]:
        """Names of the matrices and norms in the file, put by this run or an earlier one."""
        return set(self._records) - {TOKENIZER_NAME}

    @property
    def remaining(self) -> list[str]:
        """Names still to be put, in the order of a forward pass."""
        return [name for name in self._parts if name not in self._records]

    def record(self, name: str) -> dict[str, Any]:
        """The facts that were stored with ``name``; ``KeyError`` if it is not done."""
        return self._records[name]

    def put(
        self, name: str, tensor: Weight | np.ndarray, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Store matrix ``name``, or norm ``name`` as float32 ``[n]``, with JSON ``facts`` about it.

        Raises ``FormatError`` when it is not what the plan said, or not finite.
        """
        self._check_kind(name, tensor)
        arrays = [tensor] if isinstance(tensor, np.ndarray) else linear_arrays(tensor)
        self._write(name, arrays, dict(facts or {}))

    def put_expert(self, name: str, expert: int, tensor: LinearTensor) -> None:
        """Store one matrix of the stack ``name``: 0, 1, 2, ... in this order, then ``end_stack``. A
        run that is interrupted between begins the stack again. Raises ``FormatError`` as ``put``.
        """
        self._check_kind(name, tensor)
        if expert != len(self._stack):
            raise ValueError(f"{name}: expert {expert} after {len(self._stack)} others")
        before = self._stack[-1] if self._stack else {}
        own = [part._replace(shape=part.shape[1:]) for part in self._parts[name]]
        self._stack.append(self._write_parts(own, linear_arrays(tensor), expert, before))

    def end_stack(self, name: str, facts: Mapping[str, Any] | None = None) -> None:
        """The stack ``name`` is complete, with JSON ``facts`` about it."""
        if len(self._stack) != self._parts[name][0].shape[0]:
            raise ValueError(f"{name}: {len(self._stack)} experts were put")
        self._record(name, self._stack[-1], dict(facts or {}))
        self._stack = []

    def _check_kind(self, name: str, tensor: Weight | np.ndarray) -> None:
        if name not in self._parts or name == TOKENIZER_NAME:
            raise FormatError(f"{name}: a model of this shape has no such tensor")
        if name in self._kinds and (
            isinstance(tensor, np.ndarray) or tensor.kind != self._kinds[name]
        ):
            found = "an array" if isinstance(tensor, np.ndarray) else kind_text(tensor.kind)
            raise FormatError(f"{name}: planned as {kind_text(self._kinds[name])}, got {found}")

    def _write(self, name: str, arrays: list[np.ndarray], facts: dict[str, Any]) -> None:
        self._record(name, self._write_parts(self._parts[name], arrays, 0, {}), facts)

    def _write_parts(
        self,
        parts: Sequence[Part],
        arrays: Sequence[np.ndarray],
        index: int,
        crcs: Mapping[str, int],
    ) -> dict[str, int]:
        """Write the arrays, each behind ``index`` others of its kind whose checksums are ``crcs``;
        returns the checksums of all together."""
        found: dict[str, int] = {}
        for part, array in zip(parts, arrays, strict=True):
            if array.dtype != DTYPES[part.dtype] or array.shape != part.shape:
                raise FormatError(
                    f"{part.name}: {array.dtype} {list(array.shape)}, "
                    f"expected {DTYPES[part.dtype]} {list(part.shape)}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FormatError(f"{part.name}: NaN or infinity; the source may be damaged")
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            found[part.name] = zlib.crc32(flat.data, crcs.get(part.name, 0))
            offset = self._entries[part.name].begin + index * part.nbytes
            self._pwrite(flat, self._data_start + offset)
        return found

    def _record(self, name: str, crcs: dict[str, int], facts: dict[str, Any]) -> None:
        line = json.dumps({"name": name, "crcs": crcs, "facts": facts})
        try:
            with open(self.journal, "a", encoding="utf-8") as journal:
                journal.write(line + "\n")
        except OSError as error:
            raise self._disk_error(error) from None
        self._crcs.update(crcs)
        self._records[name] = json.loads(line)["facts"]

    def finish(self, quantization: Mapping[str, Any]) -> Path:
        """Write the header, flush to disk, and give the file its final name, which is returned.

        Raises ``EdgeDBError`` naming the first tensor that was never put, and ``FormatError`` if
        what was written is nothing that ``read_dbb`` opens; it keeps the name ``.partial`` then.
        """
        if self.remaining:
            raise EdgeDBError(f"{self.remaining[0]}: never written; the file would be incomplete")
        header = self._render(quantization, self._crcs, self._data_start)
        try:
            if len(header) > self._data_start:
                self._move_data(len(header))
            self._pwrite(np.frombuffer(header, np.uint8), 0)
            os.fsync(self._fd)
            self._read_back()
            if not descriptors.OPEN_FILES_MOVE:
                self.close()
            os.replace(self.partial, self.path)
            self.journal.unlink(missing_ok=True)
            descriptors.sync_folder(self.path.parent)
        except OSError as error:
            raise self._disk_error(error) from None
        finally:
            self.close()
        return self.path

    def _read_back(self) -> None:
        from .dbb import read_dbb  # which offers this writer

        try:
            read_dbb(self.partial)
        except (FormatError, UnsupportedModelError) as error:
            raise type(error)(f"what was written cannot be read: {error}") from None

    def close(self) -> None:
        """Release the file; what is written stays for the next run."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DbbWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _render(
        self, quantization: Mapping[str, Any], crcs: Mapping[str, int], reserved: int = 0
    ) -> bytes:
        metadata = {
            **self._metadata,
            "quantization": json.dumps(quantization),
            "checksums": json.dumps({name: f"{crcs[name]:08x}" for name in self._entries}),
        }
        return render_header(metadata, self._entries, reserved)

    def _open(self) -> None:
        try:
            if self.path.is_dir():
                raise EdgeDBError(f"{self.path} is a directory: name a file to write")
            self._fd = self._open_locked()
            self._grown.unlink(missing_ok=True)  # of a run that was killed
            self._resume()
            if not self._records:
                os.ftruncate(self._fd, 0)
                self.journal.write_text(json.dumps({"key": self._key}) + "\n", encoding="utf-8")
            total = self._data_start + self._size
            if hasattr(os, "posix_fallocate"):
                # Learn now, not after an hour, that the disk is too small.
                os.posix_fallocate(self._fd, 0, total)
            else:
                os.ftruncate(self._fd, total)
        except OSError as error:
            raise self._disk_error(error) from None

    def _open_locked(self) -> int:
        """The partial file, locked: it belongs to one process at a time."""
        while True:
            fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | descriptors.BINARY, 0o644)
            try:
                descriptors.lock(fd)
            except BlockingIOError:
                os.close(fd)
                raise EdgeDBError(f"{self.path}: another process is writing this file") from None
            try:
                if os.path.samestat(os.fstat(fd), os.stat(self.partial)):
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)  # finished by another process before it was locked

    def _resume(self) -> None:
        """Take over the finished tensors of an earlier run whose bytes are really there."""
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0])["key"] != self._key:
                return
        except (OSError, ValueError, LookupError, TypeError):
            return
        kept = lines[:1] + [line for line in lines[1:] if self._take_over(line)]
        self.journal.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _take_over(self, line: str) -> bool:
        try:
            item = json.loads(line)
            name, crcs, facts = item["name"], dict(item["crcs"]), dict(item["facts"])
            if {part.name for part in self._parts[name]} != crcs.keys():
                return False
        except (ValueError, LookupError, TypeError):  # being written when the power went
            return False
        if any(self._crc_on_disk(self._entries[part]) != crc for part, crc in crcs.items()):
            return False
        self._records[name] = facts
        self._crcs.update(crcs)
        return True

    def _crc_on_disk(self, entry: Entry) -> int:
        crc = 0
        for begin in range(entry.begin, entry.end, 1 << 22):
            size = min(1 << 22, entry.end - begin)
            crc = zlib.crc32(descriptors.read_at(self._fd, size, self._data_start + begin), crc)
        return crc

    def _pwrite(self, flat: np.ndarray, offset: int) -> None:
        view = flat.data
        while view:
            try:
                written = descriptors.write_at(self._fd, view, offset)
            except OSError as error:
                raise self._disk_error(error) from None
            view, offset = view[written:], offset + written

    def _move_data(self, data_start: int) -> None:
        """Copy the data behind a header that outgrew its place, into a second partial file."""
        grown = os.open(
            self._grown, os.O_RDWR | os.O_CREAT | os.O_TRUNC | descriptors.BINARY, 0o644
        )
        try:
            descriptors.lock(grown, wait=True)
            with (
                open(self._fd, "rb", closefd=False) as source,
                open(grown, "wb", closefd=False) as target,
            ):
                source.seek(self._data_start)
                target.seek(data_start)
                shutil.copyfileobj(source, target, 1 << 22)
            self.journal.unlink(missing_ok=True)  # its offsets no longer hold
            if descriptors.OPEN_FILES_MOVE:
                os.replace(self._grown, self.partial)
        except BaseException:
            os.close(grown)
            self._grown.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        if not descriptors.OPEN_FILES_MOVE:
            os.close(grown)
            os.replace(self._grown, self.partial)
            grown = self._open_locked()
        self._fd, self._data_start = grown, data_start

    def _disk_error(self, error: OSError) -> EdgeDBError:
        reason = f"{self.partial}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += f"; {self._size / 1e6:.0f} MB are needed. Run the same command again to go on"
        return EdgeDBError(reason)
