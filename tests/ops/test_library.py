"""Pointers for C keep alive what is behind them, whoever lets go of the rest."""

from __future__ import annotations

import gc
import shutil
import subprocess
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cffi import FFI
from kernels import KINDS, ops_of, pair_tensor

from edgedb.files import SOURCE_TREE
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of
from edgedb.model.network import Network
from edgedb.ops import library, native, native_context, native_memory
from edgedb.ops.buffer import aligned_zeros
from edgedb.ops.library import FILE, open_library, pointers
from edgedb.ops.native import NativeOps
from edgedb.ops.pages import Page, PageLayout
from native.compile import host


def gone(*references: weakref.ref[Any]) -> list[bool]:
    gc.collect()
    return [reference() is None for reference in references]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8])
def test_a_buffers_pointer_holds_its_array(dtype: Any) -> None:
    array = np.zeros((3, 5), dtype)
    seen = weakref.ref(array)
    pointer = ops_of().wrap(array).ptr
    del array
    assert gone(seen) == [False]
    del pointer
    assert gone(seen) == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_holds_its_arrays(kind: str) -> None:
    tensor = KINDS[kind](70, 130)
    arrays = [value for value in vars(tensor).values() if isinstance(value, np.ndarray)]
    seen = [weakref.ref(array) for array in arrays]
    struct = ops_of().matrix(tensor).struct
    del tensor, arrays
    assert gone(*seen) == [False] * len(seen)
    del struct
    assert gone(*seen) == [True] * len(seen)


def test_a_program_holds_its_weights() -> None:
    config = ModelConfig("llama", 70, 64, 64, 1, 2, 2, 32, 16)
    linears = {n: pair_tensor(*s, 1) for n, s in program_of(config).matrices().items()}
    vectors = {n: np.ones(size, np.float32) for n, size in program_of(config).vectors().items()}
    arrays = [*(tensor.blocks for tensor in linears.values()), *vectors.values()]
    seen = [weakref.ref(array) for array in arrays]
    network = Network(config, linears, vectors, ops_of(), 16)
    programs = [part.program for part in vars(network._bound).values() if hasattr(part, "program")]
    del network, linears, vectors, arrays
    assert len(programs) == 3 and gone(*seen) == [False] * len(seen)
    del programs
    assert gone(*seen) == [True] * len(seen)


def test_slots_and_spans_hold_their_arrays() -> None:
    ops = ops_of()
    arrays = [np.ones((2, 5, 4), np.float32) for _ in range(4)]
    seen = [weakref.ref(array) for array in arrays]
    buffers = [ops.wrap(array) for array in arrays]
    table = ops.page_table(PageLayout([(1, 4)], "float32"), 300)
    for index in range(2):
        table.put(index, Page(buffers[index], None))
    span, slots = table.span, pointers([buffers[2].ptr, buffers[3].ptr])
    del arrays, buffers, table
    assert gone(*seen) == [False] * 4
    del span, slots
    assert gone(*seen) == [True] * 4


class Library:
    """The C library with some functions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self._real = native.lib
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_context_holds_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    names = ("edb_pool_destroy", "edb_context_destroy")
    replaced = {name: lambda pointer, name=name: ended.append(name) for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(native_context, "lib", Library(**replaced))
        ops = NativeOps(threads=2)
    context = ops.context  # what a running operation has been given
    del ops
    gc.collect()
    assert ended == []
    del context
    assert ended == ["edb_context_destroy", "edb_pool_destroy"]


def test_an_operation_holds_its_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch of a thread goes with what the thread keeps outside its frames."""
    made: list[weakref.ref[np.ndarray]] = []
    held: list[bool] = []

    def remembered(*arguments: Any) -> np.ndarray:
        array = aligned_zeros(*arguments)
        made.append(weakref.ref(array))
        return array

    def edb_matmul(*arguments: Any) -> int:
        vars(ops.scratch).clear()
        held.append(gone(made[0]) == [False])
        return 0

    monkeypatch.setattr(native_memory, "aligned_zeros", remembered)
    ops = NativeOps(threads=1)
    matrix, x, out = ops.matrix(pair_tensor(64, 64, 1)), ops.buffer((1, 64)), ops.buffer((1, 64))
    monkeypatch.setattr(native, "lib", Library(edb_matmul=edb_matmul))
    ops.matmul(matrix, x, out, 1)
    assert held == [True]


def test_a_library_of_another_header_is_not_used(tmp_path: Path) -> None:
    header = tmp_path / "edgedb.h"
    assert open_library(FILE, header)[0] is not None  # an installation has none
    shutil.copy(SOURCE_TREE / "native" / "include" / "edgedb.h", header)
    assert open_library(FILE, header)[0] is not None
    header.write_text("int edb_new(void);")
    opened, problem = open_library(FILE, header)
    assert opened is None and "setup.py build_ext" in problem


def test_declarations_of_another_header_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    other = FFI()
    other.cdef("uint32_t edb_header_crc(void);\n#define EDB_HEADER_CRC 1")
    monkeypatch.setattr(library, "ffi", other)
    opened, problem = open_library(FILE, Path("no header here"))
    assert opened is None and "another version" in problem


def test_structures_are_as_large_as_the_compiler_makes_them(tmp_path: Path) -> None:
    """cffi lays them out by itself, without the compiler."""
    ffi = library.ffi
    names, opaque, _ = ffi.list_types()
    structures = [n for n in {*names} - {*opaque} if ffi.typeof(n).kind == "struct"]
    sized = {name: ffi.sizeof(name) for name in structures}
    assert {"edb_matrix", "edb_op", "edb_attention_shape"} <= sized.keys()
    compiler = host().compiler
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler here")
    checks = "".join(
        f"_Static_assert(sizeof({n}) == {size}, {n!r});\n" for n, size in sized.items()
    )
    source = tmp_path / "sizes.c"
    source.write_text('#include "edgedb.h"\n' + checks.replace("'", '"'))
    include = SOURCE_TREE / "native" / "include"
    subprocess.run([*compiler, "-std=c11", "-fsyntax-only", f"-I{include}", source], check=True)


def test_a_clone_without_a_library_says_how_to_build_it(tmp_path: Path) -> None:
    header = tmp_path / "edgedb.h"
    assert "at installation?" in open_library(tmp_path / "none", header)[1]
    header.touch()
    assert "pip install -e ." in open_library(tmp_path / "none", header)[1]
