"""What every call into the C library needs: its context, with the pool of threads, and scratch."""

from __future__ import annotations

import os
import weakref

from ..errors import NativeError
from .cores import physical_cores
from .library import (
    available,
    ffi,
    instruction_sets,
    kernels,
    lib,
    owned,
    status_text,
    text_of,
)
from .native_memory import ThreadScratch

# Beyond this many cores decoding has long met the memory's limit and only the joins get dearer.
MAX_DEFAULT_THREADS = 16


class NativeContext:
    """An instruction set, a kernel and a pool of threads. Threads may share one."""

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
        self.scratch = ThreadScratch()
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


# A forked child has none of its parent's threads: the C library then works on the calling thread,
# which is safe and slow, so the child gets a pool of its own.
_running: weakref.WeakSet[NativeContext] = weakref.WeakSet()


def _restart_pools() -> None:
    for running in list(_running):
        running._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_pools)
