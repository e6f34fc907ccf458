"""Plans for a budget: never over it, dear matrices first, tables too."""

from __future__ import annotations

import pytest
from dbb_files import TOKENIZER

from edgedb.convert.budget import Budget, choose
from edgedb.errors import EdgeDBError
from edgedb.format.tensors import Kind, linear_parts
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of

CONFIG = ModelConfig(
    model_type="llama", vocab_size=8000, hidden_size=576, intermediate_size=1536, n_layers=6,
    n_heads=9, n_kv_heads=3, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
SHAPES = program_of(CONFIG).matrices()
WEIGHTS = sum(rows * cols for rows, cols in SHAPES.values())


def bits_of(kinds: dict[str, Kind]) -> float:
    found = (p.nbytes for n, kind in kinds.items() for p in linear_parts(n, *SHAPES[n], kind))
    return 8 * sum(found) / WEIGHTS


def chosen(bits: float, fixed: dict[str, Kind] | None = None, **dear: float) -> dict[str, Kind]:
    costs = dict.fromkeys(SHAPES, 1.0) | {f"layers.1.{name}": cost for name, cost in dear.items()}
    return choose(costs, Budget(bits=bits), CONFIG, TOKENIZER, fixed or {})


@pytest.mark.parametrize("bits", [2.31, 2.5, 3.0, 3.4, 4.6, 5.5, 9.0])
def test_bits_are_used_and_not_exceeded(bits: float) -> None:
    kinds = chosen(bits)
    assert list(kinds) == list(SHAPES)
    assert min(0.98 * bits, 6.5) < bits_of(kinds) <= bits


def test_what_is_dear_gets_more() -> None:
    kinds = chosen(3.0, mlp_down=50.0, attn_qkv=1e-3)
    assert kinds["layers.1.mlp_down"] == 6 and kinds["layers.1.attn_qkv"] == 2
    assert set(chosen(9.0).values()) == {6, "int8"} or set(chosen(9.0).values()) == {6}


@pytest.mark.parametrize("kind", ["int8", "float16", 4])
def test_a_table_that_was_asked_for_stays(kind: Kind) -> None:
    kinds = chosen(5.5, {"embedding": kind})
    assert kinds["embedding"] == kind
    assert bits_of(kinds) <= 5.5


def test_a_budget_that_is_too_small_is_one_line() -> None:
    with pytest.raises(EdgeDBError, match=r"at least 2\.3\d bits a weight, \d+\.\d MB more"):
        chosen(2.0)
    with pytest.raises(EdgeDBError, match="too small a budget"):
        costs = dict.fromkeys(SHAPES, 1.0)
        choose(costs, Budget(size_bytes=1000), CONFIG, TOKENIZER, {})
