"""The map of a plan."""

from __future__ import annotations

from edgedb.format.tensors import Kind
from edgedb.model.layer_map import layer_map


def test_a_row_a_matrix_and_a_column_a_layer() -> None:
    kinds: dict[str, Kind] = {"embedding": "int8"}
    for layer in range(12):
        kinds[f"layers.{layer}.attn_qkv"] = 3 if layer == 1 else 2
        kinds[f"layers.{layer}.mlp_down"] = "float16" if layer == 11 else 6
    assert layer_map(kinds) == [
        "planes     0         10",
        "attn_qkv   232222222222",
        "mlp_down   66666666666h",
        "embedding  i  int8",
        "h: float16",
    ]


def test_tables_alone() -> None:
    assert layer_map({"embedding": 4}) == ["embedding  4  2 pairs"]
