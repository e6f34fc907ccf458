"""What a call of the C library costs in Python, in microseconds: ``python -m bench.calls``.

In turns: through the shared library that is installed (cffi's ABI mode), and through a module for
this Python alone, compiled here (its API mode). A call without arguments, and one of nine that is
refused at once; printed are medians over rounds, without the loop's own time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cffi import FFI

from edgedb.ops import library
from native.compile import HEADER, declarations

CALLS, ROUNDS = 20_000, 60


def compiled(folder: Path) -> tuple[Any, Any]:
    """The API mode's library and ffi; the functions are those of the shared library."""
    ffi = FFI()
    ffi.cdef(declarations())
    place = library.FILE.resolve().parent
    ffi.set_source(
        "_compiled_calls",
        f'#include "{HEADER}"',
        extra_objects=[str(library.FILE.resolve())],
        extra_link_args=[f"-Wl,-rpath,{place}"],
    )
    ffi.compile(tmpdir=str(folder))
    sys.path.insert(0, str(folder))
    module = import_module("_compiled_calls")
    return module.lib, module.ffi


def loops(lib: Any, null: Any) -> dict[str, Callable[[], None]]:
    count, attention = lib.edb_isa_count, lib.edb_attention

    def bare() -> None:
        for _ in range(CALLS):
            count()

    def nine() -> None:
        for _ in range(CALLS):
            attention(null, null, null, null, null, 1, 0, null, 0)

    return {"no argument": bare, "nine arguments": nine}


def empty() -> None:
    for _ in range(CALLS):
        pass


def main() -> None:
    from edgedb._declarations import ffi

    with tempfile.TemporaryDirectory() as folder:
        lib, its = compiled(Path(folder))
        kinds = {"ABI": loops(library.lib, ffi.NULL), "API": loops(lib, its.NULL)}
        timed = {f"{mode}, {what}": run for mode in kinds for what, run in kinds[mode].items()}
        seconds: dict[str, list[float]] = {name: [] for name in [*timed, ""]}
        for _ in range(ROUNDS):
            for name, run in {**timed, "": empty}.items():
                begun = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begun)
    loop = statistics.median(seconds.pop(""))
    for name, values in seconds.items():
        print(f"{name}: {(statistics.median(values) - loop) / CALLS * 1e6:.2f} us")


if __name__ == "__main__":
    main()
