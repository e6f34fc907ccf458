"""Byte-pair merges in C (``native/src/merges.c``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import NativeError
from .library import array_pointer, lib, status_text, struct_pointer

Ids = npt.NDArray[np.int32]
Ends = npt.NDArray[np.int64]


def can_merge() -> bool:
    """Whether there is a C library here."""
    return lib is not None


class Merges:
    """What neighbouring pieces make together; the arrays are those of ``edb_merges``, int32."""

    def __init__(self, ends: Ids, rights: Ids, ranks: Ids, results: Ids) -> None:
        fields = {
            "n_merges": len(rights),
            "n_pieces": len(ends),
            "ends": array_pointer(ends),
            "rights": array_pointer(rights),
            "ranks": array_pointer(ranks),
            "results": array_pointer(results),
        }
        self._struct = struct_pointer("edb_merges *", fields)

    def join(self, ids: Ids, ends: Ends) -> tuple[Ids, Ends]:
        """Pieces ``ids`` of words that end at ``ends``, joined: new arrays of the same kinds.

        Raises ``NativeError`` where a piece or the table is not what it should be.
        """
        if not len(ids):
            return ids, ends
        ids, ends = ids.astype(np.int32), ends.astype(np.int64)  # copies, to be written
        words = array_pointer(ends)
        scratch = np.empty(lib.edb_merge_scratch_bytes(words, len(ends)) // 8, np.uint64)
        memory = array_pointer(scratch)
        status = lib.edb_merge(
            self._struct, array_pointer(ids), words, len(ends), memory, scratch.nbytes
        )
        if status:
            raise NativeError(f"merge: {status_text(status)}")
        return ids[: ends[-1]], ends
