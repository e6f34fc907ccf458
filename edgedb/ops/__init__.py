"""One table of operations, three backends; the only place that knows which backend runs.

``create()`` returns an ``Ops``. ``native`` (C through cffi) is the fast one, ``numba`` needs no
compiler at installation, ``numpy`` is the reference that defines the numerics (design of y = W x:
``docs/format.md``). ``EDGEDB_BACKEND``, ``EDGEDB_ISA``, ``EDGEDB_KERNEL`` and ``EDGEDB_THREADS``
force a choice and fail loudly when it cannot run.

May ask: format.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import arguments
from ..errors import EdgeDBError, NativeError, SlowBackendWarning
from .buffer import Buffer
from .selection import Doubles, Floats, Ids

if TYPE_CHECKING:
    from ..format.tensors import LinearTensor
    from .pages import PageLayout, PageTable
    from .program import Program
    from .sequences import Span
    from .weights import Weights

BACKENDS = ("native", "numba", "numpy")  # best first


class Ops(Protocol):
    """What runs a program, multiplies by a matrix, and helps to choose a token.

    Arrays are row-major float32 unless said otherwise, ``n`` is the number of tokens in use, and
    buffers may hold more rows than that.
    """

    name: str
    isa: str
    kernel: str  # how pairs of planes are multiplied; empty where there is only one way
    threads: int

    def buffer(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        """A zeroed, aligned array that this backend can work on."""

    def wrap(self, array: np.ndarray) -> Buffer:
        """An existing C-contiguous array, not copied."""

    def matrix(self, tensor: LinearTensor) -> Any:
        """A weight matrix prepared for ``matmul``; the data stays where it is."""

    def matmul(self, matrix: Any, x: Buffer, out: Buffer, n: int, add: bool = False) -> None:
        """``out[t] = W x[t]``, or ``+=`` with ``add``; x ``[n, cols]``, out ``[n, rows]``."""

    def bind(self, program: Program, weights: Weights) -> BoundProgram:
        """``program`` with its weights, ready to run."""

    def page_table(self, layout: PageLayout, capacity: int) -> PageTable:
        """An empty table for ``capacity`` positions of a sequence."""

    def largest(self, logits: Floats, k: int) -> tuple[Ids, Floats]:
        """Ids and values of the ``k`` largest, largest first, of equal ones the lowest id first."""

    def softmax_weights(self, logits: Floats, top: float, temperature: float = 1.0) -> Doubles:
        """``exp((logits - top) / temperature)``, float64, the same bits with every backend."""


class BoundProgram(Protocol):
    """A program with its weights, immutable and shared between threads; each has a state."""

    def state(self) -> Any:
        """What one running pass needs; ``size_bytes`` is its size."""

    def read(self, state: Any, ids: Sequence[int], spans: Sequence[Span]) -> None:
        """``first`` and all layers for ``ids``, at most ``MAX_ROWS`` of them: the rows of ``spans``
        one after the other. Rotary tables cover their positions."""

    def hidden(self, state: Any, start: int, n: int) -> Buffer:
        """Rows ``start`` to ``start + n`` of the pass through ``final``. A pass gives either these
        or logits, once."""

    def gather(self, state: Any, rows: Sequence[int]) -> None:
        """Move rows of the pass, in ascending order, to its beginning."""

    def logits(self, state: Any, start: int, n: int, out: Buffer | None = None) -> Floats:
        """The same rows through ``final`` and ``head``: ``[n, vocabulary]``, the state's own; of
        one row into ``out``, if there is one."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here, and why not if it cannot."""

    name: str
    available: bool
    reason: str


def statuses() -> list[BackendStatus]:
    """The state of every backend, best first."""
    return [BackendStatus(name, *_available(name)) for name in BACKENDS]


def create(
    backend: str | None = None,
    isa: str | None = None,
    threads: int | None = None,
    kernel: str | None = None,
) -> Ops:
    """The operations of ``backend``, or of the best one that can run.

    ``isa`` forces an instruction set of the native backend, ``threads`` the number of threads
    (default: the physical cores this process may use), ``kernel`` the way the native backend
    multiplies pairs of planes (``lookup``, ``popcount``, or ``popcount4``, an approximation with
    4-bit activations; default: the fastest). Arguments win over the environment.
    Warns once, with the reason, where the native backend was not refused but cannot run.
    Raises ``NativeError`` if a forced choice cannot run, ``EdgeDBError`` for an unknown name.
    """
    given = {"backend": backend, "isa": isa, "kernel": kernel, "threads": threads}
    chosen = {name: _choose(name, value) for name, value in given.items()}
    backend, isa, kernel, threads = chosen.values()
    if backend is None:
        # Either choice means the native library: falling back would hide its absence.
        native_only = isa or kernel
        backend = "native" if native_only else _best()
    elif backend != "native":
        for what, choice in (("instruction set", isa), ("kernel", kernel)):
            if choice:
                raise EdgeDBError(
                    f"{what} {choice!r} is a choice of the native backend, not of {backend}"
                )
    available, reason = _available(backend)
    if not available:
        raise NativeError(f"backend {backend} cannot run: {reason}")
    if backend == "native":
        from .native import NativeOps

        return NativeOps(isa, threads, kernel)
    if backend == "numba":
        from .jit import NumbaOps

        return NumbaOps(threads)
    from .reference import ReferenceOps

    return ReferenceOps()


_warned = False  # about the missing native backend, once a process


def _best() -> str:
    """The name of the best backend that can run; says why if that is not the native one."""
    global _warned
    best = next(status for status in statuses() if status.available)
    if best.name != BACKENDS[0] and not _warned:
        _warned = True
        reason = _available(BACKENDS[0])[1]
        warnings.warn(
            f"running on {best.name}, many times slower than native: {reason}",
            SlowBackendWarning,
            stacklevel=3,
        )
    return best.name


_RULES: dict[str, arguments.Rule[Any]] = {
    "backend": arguments.choice(*BACKENDS),
    "isa": arguments.words,
    "kernel": arguments.words,
    "threads": arguments.whole(1, 256),
}


def _choose(name: str, value: Any) -> Any:
    """An argument of ``create``, or what the environment has in its place, or None."""
    if value is not None:
        return _RULES[name](name, value)
    variable = f"EDGEDB_{name.upper()}"
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    return _RULES[name](variable, int(text) if name == "threads" and text.isdecimal() else text)


def _available(name: str) -> tuple[bool, str]:
    if name == "numpy":
        return True, "always there; slow"
    if name == "numba":
        try:
            found = importlib.util.find_spec("numba") is not None
        except ImportError:
            found = False
        return (
            (True, "compiles at first use") if found else (False, "package numba is not installed")
        )
    from . import library

    return library.available()
