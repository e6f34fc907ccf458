"""The C library, and the pointers that it is given.

A call into C lets go of the interpreter's lock, so while it runs anything may happen in Python:
another thread drops the last reference to an array, or the process ends around a daemon thread,
which frees whatever that thread keeps outside its frames. Only the arguments of the call itself are
sure to live until it returns. Hence one rule: a pointer keeps alive all memory that C reaches
through it. ``array_pointer``, ``struct_pointer``, ``pointers`` and ``owned`` make such pointers,
and nothing else in this package makes any; a cast (``ffi.cast``) loses what it points to.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import SOURCE_TREE

try:
    from .._declarations import ffi
except ModuleNotFoundError:
    ffi = None

FILE = Path(__file__).parents[1] / {"win32": "edgedb.dll", "darwin": "libedgedb.dylib"}.get(
    sys.platform, "libedgedb.so"
)
HEADER = SOURCE_TREE / "native" / "include" / "edgedb.h"  # nowhere but in a checkout


def open_library(file: Path, header: Path) -> tuple[Any, str]:
    """The library in ``file``, or None and why it is of no use.

    A library of another header than our declarations' is none, nor one of another than the
    checkout's: structures may differ, and Python would write past their ends.
    """
    if ffi is None or not file.exists():
        if header.exists():  # which comes before an installation in Python's path
            return None, "the C library was not built in this clone: pip install -e . builds it"
        return None, "the C library was not built (no C compiler at installation?)"
    try:
        # Never unloaded: threads of a pool may still be in it when the interpreter ends.
        opened = ffi.dlopen(str(file), ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))
        crc = opened.edb_header_crc()
    except (OSError, AttributeError) as error:
        return None, (
            f"the C library cannot be loaded (damaged, or built for another machine?): {error}"
        )
    declared = opened.EDB_HEADER_CRC
    if crc != declared or (header.exists() and crc != zlib.crc32(header.read_bytes())):
        return None, (
            "the C library is of another version: python setup.py build_ext --inplace makes it anew"
        )
    return opened, ""


lib, problem = open_library(FILE, HEADER)

_ELEMENTS = {
    np.dtype(np.float64): "double[]",
    np.dtype(np.float32): "float[]",
    np.dtype(np.int32): "int32_t[]",
    np.dtype(np.int64): "int64_t[]",
}


def array_pointer(array: np.ndarray) -> Any:
    """Pointer to a C-contiguous array, typed if it holds floats, doubles or signed integers of
    4 or 8 bytes."""
    return ffi.from_buffer(_ELEMENTS.get(array.dtype, "char[]"), array)


def struct_pointer(ctype: str, fields: dict[str, Any]) -> Any:
    """Pointer to a new struct, which keeps alive what its fields point to."""
    return owned(ffi.new(ctype, fields), forget, tuple(fields.values()))


def pointers(items: Sequence[Any], ctype: str = "float *") -> Any:
    """A new array of pointers, which keeps alive what they point to."""
    return owned(ffi.new(f"{ctype}[{len(items)}]", list(items)), forget, tuple(items))


def owned(pointer: Any, destroy: Callable[[Any], None], *needed: Any) -> Any:
    """``pointer`` together with what it is good for nothing without.

    When nobody holds it any more, ``destroy`` is called, and only then what it needed may go.
    """

    def end(pointer: Any, destroy: Callable[[Any], None] = destroy, needed: Any = needed) -> None:
        destroy(pointer)

    return ffi.gc(pointer, end)


def forget(pointer: Any) -> None:
    """The end of memory that cffi owns."""


def status_text(status: int) -> str:
    """One line for a status of the library."""
    return text_of(lib.edb_status_text(status))


def text_of(string: Any) -> str:
    """A string of the library."""
    return str(ffi.string(string).decode())


def available() -> tuple[bool, str]:
    """Whether the C library can be used here, and which instruction set or why not."""
    if lib is None:
        return False, " ".join(problem.split())
    return True, f"instruction set {next(name for name, _, runs in instruction_sets() if runs)}"


def instruction_sets() -> list[tuple[str, str, bool]]:
    """``(name, description, runs on this CPU)`` of every set in the library, best first."""
    return [
        (
            text_of(lib.edb_isa_name(i)),
            text_of(lib.edb_isa_description(i)),
            bool(lib.edb_isa_supported(i)),
        )
        for i in range(lib.edb_isa_count())
    ]


def kernels(isa: str | None = None) -> list[str]:
    """Names of the pair kernels of an instruction set, the fastest measured there first; empty for
    one that cannot run here. Default: the best set of this CPU."""
    name = isa.encode() if isa else ffi.NULL
    found: list[str] = []
    while (text := lib.edb_kernel_name(name, len(found))) != ffi.NULL:
        found.append(text_of(text))
    return found
