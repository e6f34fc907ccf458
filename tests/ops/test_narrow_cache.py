"""The int8 key/value cache: the same bits on every set, near those of float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernels import ISAS, assert_same_bits, ops_of
from operations import Heads, Paged, attention, rope, walked_attention

import edgedb
from edgedb.ops import Ops, create
from edgedb.ops.narrow_cache import block_bytes, pack_rows, row_bytes, unpack_rows
from edgedb.ops.native import NativeOps
from edgedb.ops.reference import ReferenceOps

PROMPT = [5 + i % 300 for i in range(150)]
OPTIONS = {"max_tokens": 12, "temperature": 1.5, "seed": 1}


@pytest.mark.parametrize("head_dim", [2, 18, 64, 66, 80, 128, 130])
def test_rows_come_back_within_half_a_step(head_dim: int) -> None:
    x = np.random.default_rng(head_dim).normal(0, 3, (3, 5, head_dim)).astype(np.float32)
    rows = pack_rows(x)
    assert rows.dtype == np.int8 and rows.shape == (3, 5, row_bytes(head_dim))
    for start in range(0, head_dim, 64):
        group = x[..., start : start + 64]
        error = np.abs(unpack_rows(rows, head_dim)[..., start : start + 64] - group)
        assert (error <= np.abs(group).max(axis=-1, keepdims=True) / 127 * 0.501).all()


def run(
    ops: Ops, shape: Heads, qkv: np.ndarray, n: int, position: int, narrow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Store ``n`` tokens behind what ``narrow [n_kv_heads, capacity, row]`` holds as keys and as
    values; its new content, and what they see."""
    angles = np.random.default_rng(5).uniform(-3, 3, (shape.capacity, shape.head_dim // 2))
    cos, sin = (ops.wrap(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    cache = Paged(ops, shape, narrow.dtype)
    cache.fill(np.stack([narrow, narrow]))
    if not isinstance(ops, NativeOps):
        seen = walked_attention(ops, qkv, cos.array, sin.array, cache, position)[1]
        return cache.arrays, seen
    x, out = ops.wrap(qkv.copy()), ops.buffer((n, shape.n_heads * shape.head_dim))
    rope(ops, x, cos, sin, cache, n, position)
    attention(ops, x, cache, out, n, position)
    return cache.arrays, out.array


@pytest.mark.skipif(not ISAS, reason="needs the C library")
@pytest.mark.parametrize("head_dim", [18, 64, 80, 130])
@pytest.mark.parametrize(("n", "position"), [(1, 0), (1, 300), (5, 250), (40, 511)])
def test_attention_has_the_same_bits_everywhere(head_dim: int, n: int, position: int) -> None:
    shape = Heads(6, 2, head_dim, position + n + 3)
    rng = np.random.default_rng(n)
    qkv = rng.normal(0, 2, (n, 10 * head_dim)).astype(np.float32)
    held = rng.normal(0, 2, (2, shape.capacity, head_dim)).astype(np.float32)
    narrow = pack_rows(held)
    narrow[:, position + n :] = -1  # codes and scales, NaN, that nobody sees
    results = [
        run(ops_of(isa, threads), shape, qkv, n, position, narrow)
        for isa in ISAS
        for threads in (1, 2)
    ]
    for stored, seen in results[1:]:
        assert stored.tobytes() == results[0][0].tobytes()
        assert_same_bits(seen, results[0][1])
    stored, seen = results[0]
    np.testing.assert_allclose(
        seen, run(ReferenceOps(), shape, qkv, n, position, narrow)[1], atol=2e-3
    )
    # What was stored, widened to float32, gives nearly the same.
    wide = run(ReferenceOps(), shape, qkv, n, position, unpack_rows(narrow, head_dim))[1]
    assert np.abs(seen - wide).max() < 0.05 * np.abs(wide).max()


@pytest.mark.skipif(not ISAS, reason="needs the C library")
@pytest.mark.parametrize("heads", [1, 2, 4, 5, 8])
@pytest.mark.parametrize(
    ("head_dim", "position"),
    [(66, 0), (64, 2), (96, 100), (128, 252), (2, 255), (66, 258), (96, 508)],
)
def test_any_number_of_queries_of_a_head(heads: int, head_dim: int, position: int) -> None:
    """Few are multiplied with rows as they lie in the cache, many with packed ones."""
    rng, n = np.random.default_rng(heads), 4
    shape = Heads(2 * heads, 2, head_dim, position + n)
    qkv = rng.normal(0, 2, (n, (2 * heads + 4) * head_dim)).astype(np.float32)
    held = pack_rows(rng.normal(0, 2, (2, shape.capacity, head_dim)).astype(np.float32))
    held[:, position:] = -1  # NaN behind what is seen
    results = [run(ops_of(isa), shape, qkv, n, position, held)[1] for isa in ISAS]
    for seen in results[1:]:
        assert_same_bits(seen, results[0])
    one_by_one = [run(ops_of(), shape, qkv[: t + 1], t + 1, position, held)[1][t] for t in range(n)]
    assert_same_bits(np.stack(one_by_one), results[0])
    expected = run(ReferenceOps(), shape, qkv, n, position, held)[1]
    np.testing.assert_allclose(results[0], expected, atol=2e-3)


def rows_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Rows of a cache, heads of 64, from ``codes [length, 64]`` and ``scales [length]``."""
    rows = np.zeros((2, len(codes), row_bytes(64)), np.int8)
    rows[..., :64] = codes
    rows[..., 64:] = scales.astype(np.float32).view(np.int8).reshape(-1, 4)
    return rows


# Among 64 weights, those that take most of 16 bits when their products are added up: 64 alike, all
# eight of one sum, two of them, one.
HEAVY = {
    "all": range(64),
    "eight": [*range(6, 64, 16), *range(7, 64, 16)],
    "two": [6, 7],
    "one": [38],
}


@pytest.mark.skipif(not ISAS, reason="needs the C library")
@pytest.mark.parametrize("n", [1, 24])
@pytest.mark.parametrize("heavy", HEAVY)
@pytest.mark.parametrize("code", [127, -127, -128])
def test_the_largest_weights_times_the_largest_values(n: int, heavy: str, code: int) -> None:
    """Queries of zeros see all keys alike, so weights are the values' scales."""
    position, shape = 256 - n, Heads(2, 2, 64, 256)
    scales = np.full(256, 1e-5)
    for tile in range(0, 256, 64):
        scales[[tile + key for key in HEAVY[heavy]]] = 1
    rows = rows_of(np.full((256, 64), code, np.int8), scales)
    expected = code * scales[:position].sum()
    qkv = np.zeros((n, 6 * 64), np.float32)
    seen_keys = np.arange(position + 1, 257)  # the queries' own values are 0
    for isa in ISAS:
        seen = run(ops_of(isa), shape, qkv, n, position, rows)[1]
        wanted = np.broadcast_to((expected / seen_keys)[:, None], seen.shape)
        np.testing.assert_allclose(seen, wanted, rtol=5e-3)


@pytest.mark.skipif(not ISAS, reason="needs the C library")
@pytest.mark.parametrize("heavy", HEAVY)
@pytest.mark.parametrize("sign", ["alike", "of two", "of pairs", "of halves"])
@pytest.mark.parametrize("code", [127, -127, -128])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_largest_queries_times_the_largest_keys(
    n: int, heavy: str, sign: str, code: int
) -> None:
    """Products of bytes must not saturate, whichever columns a query is large in."""
    shape, columns = Heads(4, 2, 64, 80), np.arange(64)
    turned = {
        "alike": 0 * columns,
        "of two": columns,
        "of pairs": columns // 2,
        "of halves": columns // 32,
    }
    query = np.full(64, 0.01, np.float32)
    query[list(HEAVY[heavy])] = 4
    query *= 1 - 2 * (turned[sign] % 2)
    keys = np.where(turned[sign] % 2, -127, code) * np.where(np.arange(80) % 2, 1, -1)[:, None]
    rows = rows_of(np.clip(keys, -128, 127), np.arange(1, 81) / 1e5)
    qkv = np.zeros((n, 8 * 64), np.float32)
    qkv[:, : 4 * 64] = np.tile(query, 4)
    results = [run(ops_of(isa), shape, qkv, n, 80 - n, rows)[1] for isa in ISAS]
    for seen in results[1:]:
        assert_same_bits(seen, results[0])
    expected = run(ReferenceOps(), shape, qkv, n, 80 - n, rows)[1]
    np.testing.assert_allclose(results[0], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.skipif(not ISAS, reason="needs the C library")
@pytest.mark.parametrize("scale", [-0.03, -0.0, 1e-42, np.inf, -np.inf, np.nan])
def test_scales_that_nothing_stores(scale: float) -> None:
    """As in a damaged session: tiny ones count as 0; what has a sign or is no number makes none."""
    shape, rng = Heads(8, 2, 64, 300), np.random.default_rng(4)
    qkv = rng.normal(0, 1, (1, 12 * 64)).astype(np.float32)
    held = pack_rows(rng.normal(0, 1, (2, 300, 64)).astype(np.float32))
    held[:, 1:280:3, 64:] = np.array([scale], np.float32).view(np.int8)
    results = [run(ops_of(isa), shape, qkv, 1, 280, held)[1] for isa in ISAS]
    for seen in results[1:]:
        assert_same_bits(seen, results[0])
    with np.errstate(invalid="ignore"):
        expected = run(ReferenceOps(), shape, qkv, 1, 280, held)[1]
    np.testing.assert_allclose(results[0], expected, atol=2e-3)
    assert np.isfinite(expected).all() == (scale == 1e-42)
    assert np.isfinite(expected).any() == (scale == 1e-42)


@pytest.mark.skipif(not ISAS, reason="needs the C library")
def test_a_key_that_is_not_seen_changes_nothing() -> None:
    """Also where its scale is NaN: later keys of a prompt, and those before a window."""
    shape = Heads(4, 2, 64, 300)
    rng = np.random.default_rng(3)
    qkv = rng.normal(0, 2, (20, 8 * 64)).astype(np.float32)
    held = pack_rows(rng.normal(0, 2, (2, 300, 64)).astype(np.float32))
    expected = run(ops_of(), shape, qkv, 20, 270, held)[1]
    qkv[12:, 4 * 64 :] = np.nan
    found = run(ops_of(), shape, qkv, 20, 270, held)[1]
    assert_same_bits(found[:12], expected[:12])
    assert np.isnan(found[12:]).all()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_other_backends_agree(backend: str) -> None:
    shape = Heads(4, 2, 66, 40)
    rng = np.random.default_rng(1)
    qkv = rng.normal(0, 2, (3, 8 * 66)).astype(np.float32)
    held = pack_rows(rng.normal(0, 2, (2, 40, 66)).astype(np.float32))
    expected = run(ReferenceOps(), shape, qkv, 3, 30, held)
    found = run(create(backend), shape, qkv, 3, 30, held)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    if ISAS:
        native = run(ops_of(ISAS[0], 1), shape, qkv, 3, 30, held)
        np.testing.assert_allclose(native[1], expected[1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, kv_dtype="int8", context=200)


def test_token_by_token_gives_the_bits_of_a_prompt(model: edgedb.Model) -> None:
    if model.ops.name != "native":
        pytest.skip("only the native backend promises bits")
    whole = model.logits(PROMPT)
    session = model.session()
    for start in range(0, len(PROMPT), 3):
        session.prefill(PROMPT[start : start + 3])
        assert session.logits().tobytes() == whole[start + 2].tobytes()


def test_logits_are_near_those_of_float32(model: edgedb.Model, tiny_model: Path) -> None:
    exact = edgedb.load(tiny_model, kv_dtype="float32", context=200).logits(PROMPT)
    error = np.abs(model.logits(PROMPT) - exact).max()
    assert 0 < error < 0.1 * np.abs(exact).max()


def test_sessions_fork_save_and_load(model: edgedb.Model, tmp_path: Path) -> None:
    session = model.session()
    session.generate(PROMPT, **OPTIONS)
    session.save(tmp_path / "chat.kv")
    fork, loaded = session.fork(), model.load_session(tmp_path / "chat.kv")
    longer = [*session.tokens, 7]
    expected = session.generate(longer, **OPTIONS).tokens
    assert fork.generate(longer, **OPTIONS).tokens == expected
    assert loaded.generate(longer, **OPTIONS).tokens == expected


def test_memory_is_that_of_the_formula(long_model: Path) -> None:
    model = edgedb.load(long_model, kv_dtype="int8", context=8192)
    wide = edgedb.load(long_model, kv_dtype="float16", context=8192)
    c = model.config
    saved = 2 * c.n_layers * c.n_kv_heads * (2 * c.head_dim * 8192 - block_bytes(c.head_dim, 8192))
    assert wide.session().size_bytes - model.session().size_bytes == saved
