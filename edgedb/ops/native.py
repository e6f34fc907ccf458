"""The operations in C (``native/include/edgedb.h``), called through cffi.

Every pointer is prepared once, in ``buffer``, ``wrap`` and ``matrix``; an operation is then one
call, which releases the interpreter's lock, and a look at its status. That no memory goes while C
works in it is the business of the pointers: see ``library``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import NativeError
from ..format.tensors import LinearTensor
from .library import lib, status_text
from .native_context import NativeContext
from .native_memory import NativeBuffer, NativeMatrix
from .native_program import NativePageTable, NativeProgram
from .native_selection import NativeSelection

if TYPE_CHECKING:
    from .pages import PageLayout
    from .program import Program
    from .weights import Weights


class NativeOps(NativeContext, NativeSelection):
    """``Ops`` in C. Threads may share one; each then needs its own buffers.

    Buffers and matrices are those that ``buffer``, ``wrap`` and ``matrix`` of this class made.
    """

    name = "native"

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

    def page_table(self, layout: PageLayout, capacity: int) -> NativePageTable:
        """An empty table for ``capacity`` positions of a sequence."""
        return NativePageTable(layout, capacity)

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
