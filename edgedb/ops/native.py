"""The operations in C (``native/include/edgedb.h``), called through cffi.

Every pointer is prepared once, in ``buffer``, ``wrap`` and ``matrix``; an operation is then one
call, which releases the interpreter's lock, and a look at its status. That no memory goes while C
works in it is the business of the pointers: see ``library``.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import NativeError
from ..format.tensors import LinearTensor
from . import library
from .cores import physical_cores
from .library import ffi, lib, owned, status_text, text_of
from .native_memory import NativeBuffer, NativeMatrix, Scratch
from .native_program import NativeCaches, NativeProgram
from .native_selection import NativeSelection

if TYPE_CHECKING:
    from .program import Program
    from .sequences import CacheLayer
    from .weights import Weights

# Beyond this many cores decoding has long met the memory's limit and only the joins get dearer.
MAX_DEFAULT_THREADS = 16


def available() -> tuple[bool, str]:
    """Whether the C library can be used here, and which instruction set or why not."""
    if lib is None:
        return False, " ".join(library.problem.split())
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


class NativeOps(NativeSelection):
    """``Ops`` in C. Threads may share one; each then needs its own buffers.

    Buffers and matrices are those that ``buffer``, ``wrap`` and ``matrix`` of this class made.
    """

    name = "native"

    def __init__(
        self, isa: str | None = None, threads: int | None = None, kernel: str | None = None
    ) -> None:
        """``isa``: a name of ``instruction_sets()``, default the best this CPU has; ``threads``:
        default the physical cores, at most 16; ``kernel``: a name of ``kernels(isa)``, default its
        first. Raises ``NativeError`` if one of them cannot be had.
        """
        if lib is None:
            raise NativeError(available()[1])
        self.threads = threads or min(physical_cores(), MAX_DEFAULT_THREADS)
        self._requested = (isa, kernel)
        self._start()
        self.isa = text_of(lib.edb_context_isa(self.context))
        self.kernel = text_of(lib.edb_context_kernel(self.context))
        self.scratch = Scratch()
        _running.add(self)

    def _start(self) -> None:
        isa, kernel = (name.encode() if name else ffi.NULL for name in self._requested)
        created = ffi.new("edb_pool **")
        status = lib.edb_pool_create(self.threads, created)
        if status:
            raise NativeError(f"{self.threads} threads: {status_text(status)}")
        pool = owned(created[0], lib.edb_pool_destroy)
        created = ffi.new("edb_context **")
        status = lib.edb_context_create(isa, kernel, pool, created)
        if status == lib.EDB_ERR_KERNEL:
            listed = ", ".join(kernels(self._requested[0]))
            raise NativeError(f"unknown kernel {self._requested[1]!r}; choose one of {listed}")
        if status:
            usable = ", ".join(name for name, _, runs in instruction_sets() if runs)
            raise NativeError(
                f"instruction set {self._requested[0]!r} cannot run here; this CPU runs {usable}"
            )
        self.context = owned(created[0], lib.edb_context_destroy, pool)

    def buffer(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NativeBuffer:
        """A zeroed array on a 64-byte boundary."""
        return NativeBuffer.zeros(shape, dtype)

    def wrap(self, array: np.ndarray) -> NativeBuffer:
        """An existing C-contiguous array, not copied."""
        return NativeBuffer(array)

    def matrix(self, tensor: LinearTensor) -> NativeMatrix:
        """A weight matrix, in place if it lies on a 64-byte boundary and copied to one if not."""
        return NativeMatrix(tensor)

    def bind(self, program: Program, weights: Weights) -> NativeProgram:
        """``program`` with its weights, which stay where they are."""
        return NativeProgram(self, program, weights)

    def cache_handle(self, layers: Sequence[CacheLayer], capacity: int) -> NativeCaches:
        """Pointers to the caches of a sequence."""
        return NativeCaches(layers, capacity)

    def matmul(self, matrix: NativeMatrix, x: Any, out: Any, n: int, add: bool = False) -> None:
        """``out[t] = W x[t]``, or ``+=`` with ``add``; x ``[n, cols]``, out ``[n, rows]``."""
        if x.width != matrix.cols or out.width != matrix.rows:
            raise NativeError(
                f"matmul: {matrix.rows} x {matrix.cols} matrix, x has {x.width} columns "
                f"and out {out.width}"
            )
        scratch = self.scratch
        status = lib.edb_matmul(
            self.context, matrix.struct, x.ptr, out.ptr, n, add, *scratch.memory
        )
        if status:
            if status != lib.EDB_ERR_SCRATCH:
                _fail("matmul", status)
            scratch.grow(lib.edb_matmul_scratch_bytes(self.context, matrix.struct, n))
            self.matmul(matrix, x, out, n, add)


def _fail(operation: str, status: int) -> NoReturn:
    raise NativeError(f"{operation}: {status_text(status)}")


# A forked child has none of its parent's threads: the C library then works on the calling thread,
# which is safe and slow, so the child gets a pool of its own.
_running: weakref.WeakSet[NativeOps] = weakref.WeakSet()


def _restart_pools() -> None:
    for ops in list(_running):
        ops._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_pools)
