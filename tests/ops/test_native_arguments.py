"""Bad arguments to the C library: a status, never a crash."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kernels import ops_of, pair_tensor

from edgedb.errors import NativeError
from edgedb.format.tensors import PairTensor
from edgedb.ops.library import ffi, lib, pointers


@pytest.fixture
def call() -> Iterator[SimpleNamespace]:
    """Valid arguments of a small matrix product and attention, to spoil one at a time."""
    ops = ops_of()
    tensor = pair_tensor(65, 70, 2)
    shape = ffi.new("edb_attention_shape *", [4, 2, 8, lib.EDB_F16, 10])
    keep = {name: ops.buffer((16384,)) for name in ("x", "out", "cos", "sin", "scratch")}
    page = ops.buffer((2 * 2 * 256 * 8,), np.float16)
    yield SimpleNamespace(
        ctx=ops.context,
        matrix=ops.matrix(tensor).struct,
        tensor=tensor,
        shape=shape,
        ids=ops.buffer((4,), np.int32),
        keep=keep,
        pages=pointers([page.ptr], "void *"),
        **{name: buffer.ptr for name, buffer in keep.items()},
    )


def matmul_status(c: SimpleNamespace, n: int = 1, scratch_bytes: int = 16384) -> int:
    return int(lib.edb_matmul(c.ctx, c.matrix, c.x, c.out, n, 0, c.scratch, scratch_bytes))


def attention_status(c: SimpleNamespace, n: int = 1, pos: int = 0, size: int = 65536) -> int:
    args = (c.ctx, c.shape, c.x, c.pages, c.out, n, pos, c.scratch, size)
    return int(lib.edb_attention(*args))


def rope_status(c: SimpleNamespace, n: int = 1, pos: int = 0) -> int:
    return int(lib.edb_rope(c.ctx, c.shape, c.x, c.cos, c.sin, c.pages, n, pos))


def test_matmul_refuses_bad_arguments(call: SimpleNamespace) -> None:
    assert matmul_status(call) == lib.EDB_OK
    assert matmul_status(call, n=0) == lib.EDB_ERR_SHAPE
    assert matmul_status(call, n=-1) == lib.EDB_ERR_SHAPE
    assert matmul_status(call, n=1 << 62) == lib.EDB_ERR_SHAPE
    needed = lib.edb_matmul_scratch_bytes(call.ctx, call.matrix, 3)
    assert needed > 0
    assert matmul_status(call, n=3, scratch_bytes=needed - 1) == lib.EDB_ERR_SCRATCH
    for name in ("ctx", "matrix", "x", "out", "scratch"):
        spoiled = SimpleNamespace(**{**vars(call), name: ffi.NULL})
        assert matmul_status(spoiled) == lib.EDB_ERR_NULL, name
    one_byte_on = ffi.cast("float *", ffi.cast("char *", call.x) + 1)
    assert matmul_status(SimpleNamespace(**{**vars(call), "x": one_byte_on})) == lib.EDB_ERR_ALIGN


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("rows", 0, "SHAPE"),
        ("rows", -5, "SHAPE"),
        ("rows", 1 << 62, "SHAPE"),
        ("cols", 0, "SHAPE"),
        ("cols", -(1 << 63), "SHAPE"),
        ("cols", (1 << 63) - 1, "SHAPE"),
        ("pairs", 0, "SHAPE"),
        ("pairs", -1, "SHAPE"),
        ("pairs", 9, "SHAPE"),
        ("kind", 0, "KIND"),
        ("kind", 99, "KIND"),
        ("data", ffi.NULL, "NULL"),
        ("scales", ffi.NULL, "NULL"),
    ],
)
def test_matrix_fields_are_checked(
    call: SimpleNamespace, field: str, value: Any, status: str
) -> None:
    setattr(call.matrix, field, value)
    expected = getattr(lib, f"EDB_ERR_{status}")
    assert matmul_status(call) == expected
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 1) == expected
    assert lib.edb_matmul_scratch_bytes(call.ctx, call.matrix, 1) == 0


def test_misaligned_weights_are_refused(call: SimpleNamespace) -> None:
    call.matrix.data = ffi.cast("char *", call.matrix.data) + 32
    assert matmul_status(call) == lib.EDB_ERR_ALIGN


@pytest.mark.parametrize("token", [-1, 65, (1 << 31) - 1, -(1 << 31)])
def test_embed_refuses_ids_that_are_no_rows(call: SimpleNamespace, token: int) -> None:
    call.ids.array[1] = token
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 1) == lib.EDB_OK
    assert lib.edb_embed(call.ctx, call.matrix, call.ids.ptr, call.out, 2) == lib.EDB_ERR_RANGE


def test_attention_refuses_bad_arguments(call: SimpleNamespace) -> None:
    assert rope_status(call) == attention_status(call) == lib.EDB_OK
    for status in (rope_status, attention_status):
        assert status(call, n=10) == lib.EDB_OK
        assert status(call, n=0) == status(call, n=-1) == lib.EDB_ERR_SHAPE
        assert status(call, n=11) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=10) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=-1) == lib.EDB_ERR_RANGE
        assert status(call, n=1, pos=(1 << 63) - 1) == lib.EDB_ERR_RANGE
        for name in ("ctx", "shape", "x", "pages"):
            spoiled = SimpleNamespace(**{**vars(call), name: ffi.NULL})
            assert status(spoiled) == lib.EDB_ERR_NULL, name
    needed = lib.edb_attention_scratch_bytes(call.ctx, call.shape, 10, 10)
    assert needed > 0 and attention_status(call, n=10, size=needed - 1) == lib.EDB_ERR_SCRATCH
    for n, positions in ((1, 11), (11, 11), (3, 2), (0, 5), (-1, 5)):
        assert lib.edb_attention_scratch_bytes(call.ctx, call.shape, n, positions) == 0


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("n_heads", 3, "SHAPE"),
        ("n_heads", 0, "SHAPE"),
        ("n_heads", -2, "SHAPE"),
        ("n_heads", 1 << 30, "SHAPE"),
        ("n_kv_heads", 0, "SHAPE"),
        ("n_kv_heads", -1, "SHAPE"),
        ("head_dim", 7, "SHAPE"),
        ("head_dim", 0, "SHAPE"),
        ("head_dim", 1026, "SHAPE"),
        ("capacity", 0, "SHAPE"),
        ("capacity", 1 << 62, "SHAPE"),
        ("cache_kind", 1, "KIND"),
    ],
)
def test_attention_shapes_are_checked(
    call: SimpleNamespace, field: str, value: int, status: str
) -> None:
    setattr(call.shape, field, value)
    expected = getattr(lib, f"EDB_ERR_{status}")
    assert rope_status(call) == attention_status(call) == expected


def test_other_operations_refuse_bad_arguments(call: SimpleNamespace) -> None:
    c, null = call, ffi.NULL
    assert lib.edb_rmsnorm(c.ctx, c.x, c.cos, c.out, 1, 8, 1e-5) == lib.EDB_OK
    assert lib.edb_rmsnorm(c.ctx, null, c.cos, c.out, 1, 8, 1e-5) == lib.EDB_ERR_NULL
    assert lib.edb_rmsnorm(c.ctx, c.x, c.cos, c.out, -1, 8, 1e-5) == lib.EDB_ERR_SHAPE
    assert lib.edb_rmsnorm(c.ctx, c.x, c.cos, c.out, 1, 1 << 40, 1e-5) == lib.EDB_ERR_SHAPE
    assert lib.edb_layernorm(c.ctx, c.x, c.cos, null, c.out, 1, 8, 1e-5) == lib.EDB_OK
    assert lib.edb_layernorm(c.ctx, c.x, null, c.cos, c.out, 1, 8, 1e-5) == lib.EDB_ERR_NULL
    assert lib.edb_layernorm(c.ctx, c.x, c.cos, c.cos, c.out, 1, 0, 1e-5) == lib.EDB_ERR_SHAPE
    silu = lib.EDB_OP_SILU
    assert lib.edb_gate(c.ctx, silu, c.x, c.out, 1, 0) == lib.EDB_ERR_SHAPE
    assert lib.edb_gate(null, silu, c.x, c.out, 1, 8) == lib.EDB_ERR_NULL
    assert lib.edb_gate(c.ctx, lib.EDB_OP_COPY, c.x, c.out, 1, 8) == lib.EDB_ERR_KIND
    q = ffi.new("int8_t[64]")
    assert lib.edb_quantize(c.ctx, c.x, q, c.out, 1, 64) == lib.EDB_OK
    assert lib.edb_quantize(c.ctx, c.x, null, c.out, 1, 64) == lib.EDB_ERR_NULL
    assert lib.edb_quantize(c.ctx, c.x, q, c.out, 0, 64) == lib.EDB_ERR_SHAPE
    assert lib.edb_pool_create(1, null) == lib.EDB_ERR_NULL
    pool = ffi.new("edb_pool **")
    assert lib.edb_pool_create(0, pool) == lib.EDB_ERR_SHAPE and pool[0] == null
    context = ffi.new("edb_context **")
    assert lib.edb_context_create(b"avx9000", null, null, context) == lib.EDB_ERR_ISA
    assert lib.edb_context_create(null, b"abacus", null, context) == lib.EDB_ERR_KERNEL
    assert context[0] == null
    assert lib.edb_context_create(null, null, null, null) == lib.EDB_ERR_NULL
    assert lib.edb_kernel_name(null, -1) == lib.edb_kernel_name(b"avx9000", 0) == null
    assert lib.edb_kernel_name(null, 99) == lib.edb_context_kernel(null) == null
    assert lib.edb_isa_name(-1) == lib.edb_isa_description(99) == null
    assert lib.edb_isa_supported(99) == 0 and lib.edb_context_isa(null) == null
    lib.edb_pool_destroy(null)
    lib.edb_context_destroy(null)


def test_every_status_has_a_text() -> None:
    texts = [ffi.string(lib.edb_status_text(status)) for status in range(10)]
    assert len(set(texts)) == 10
    assert ffi.string(lib.edb_status_text(1234)) == b"unknown status"


def test_shapes_that_disagree_are_refused() -> None:
    ops = ops_of()
    matrix = ops.matrix(pair_tensor(65, 70, 1))
    with pytest.raises(NativeError, match="65 x 70 matrix, x has 71 columns"):
        ops.matmul(matrix, ops.buffer((1, 71)), ops.buffer((1, 65)), 1)
    with pytest.raises(NativeError, match="a size is zero, negative"):
        ops.matmul(matrix, ops.buffer((1, 70)), ops.buffer((1, 65)), 0)
    with pytest.raises(NativeError, match="weights"):
        ops.matrix(PairTensor(np.zeros((1, 1, 1, 1152), np.uint8), np.ones((1, 65), "f"), 65, 70))
    with pytest.raises(NativeError, match="not C-contiguous"):
        ops.wrap(np.zeros((4, 4), np.float32)[:, ::2])
