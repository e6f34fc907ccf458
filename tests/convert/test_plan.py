"""Plans of pairs: one line of text to the pairs of every matrix."""

from __future__ import annotations

import pytest
from tiny import TinySource

from edgedb.convert.plan import read_plan
from edgedb.errors import EdgeDBError

CONFIG = TinySource().config  # two layers, a tied head
KINDS = ("attn_qkv", "attn_out", "mlp_gate_up", "mlp_down")


def test_later_parts_win_over_earlier_ones() -> None:
    plan = read_plan("1, layers.1=2 ,layers.*.mlp_down=3,embedding=2", CONFIG, 3)
    assert plan == {
        "embedding": 2,
        **{f"layers.0.{kind}": 1 for kind in KINDS},
        **{f"layers.1.{kind}": 2 for kind in KINDS},
        "layers.0.mlp_down": 3,
        "layers.1.mlp_down": 3,
    }


def test_what_is_not_named_is_not_planned() -> None:
    assert read_plan("", CONFIG, 3) == {}
    assert read_plan("layers.0-1.attn_out=2", CONFIG, 3) == {
        "layers.0.attn_out": 2,
        "layers.1.attn_out": 2,
    }


@pytest.mark.parametrize(
    "text",
    ["layers.2=2", "head=2", "layers.0", "layers.*.mlp=1", "layers.0=two", "=2", "layers.*-1=2"],
)
def test_a_part_that_means_nothing_is_named(text: str) -> None:
    with pytest.raises(EdgeDBError) as caught:
        read_plan(f"1,{text}", CONFIG, 3)
    assert str(caught.value).startswith(f"{text}: expected pairs of matrices of this model")


@pytest.mark.parametrize("pairs", [0, 4])
def test_pairs_have_a_limit(pairs: int) -> None:
    with pytest.raises(EdgeDBError, match="1 to 3 pairs"):
        read_plan(f"layers.0={pairs}", CONFIG, 3)
