"""Plans: one line of text, which counts pairs, to the planes of every matrix."""

from __future__ import annotations

import pytest
from tiny import TinySource

from edgedb.convert.plan import pairs, read_plan
from edgedb.errors import EdgeDBError

CONFIG = TinySource().config  # two layers, a tied head
KINDS = ("attn_qkv", "attn_out", "mlp_gate_up", "mlp_down")


def test_later_parts_win_over_earlier_ones() -> None:
    plan = read_plan("1, layers.1=2 ,layers.*.mlp_down=1.5,embedding=3.0", CONFIG, 6)
    assert plan == {
        "embedding": 6,
        **{f"layers.0.{kind}": 2 for kind in KINDS},
        **{f"layers.1.{kind}": 4 for kind in KINDS},
        "layers.0.mlp_down": 3,
        "layers.1.mlp_down": 3,
    }


def test_what_is_not_named_is_not_planned() -> None:
    assert read_plan("", CONFIG, 6) == {}
    assert read_plan("layers.0-1.attn_out=2.5", CONFIG, 6) == {
        "layers.0.attn_out": 5,
        "layers.1.attn_out": 5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "layers.2=2",
        "head=2",
        "layers.0",
        "layers.*.mlp=1",
        "layers.0=two",
        "layers.0=1.",
        "=2",
        "layers.*-1=2",
    ],
)
def test_a_part_that_means_nothing_is_named(text: str) -> None:
    with pytest.raises(EdgeDBError) as caught:
        read_plan(f"1,{text}", CONFIG, 6)
    assert str(caught.value).startswith(f"{text}: expected pairs of matrices of this model")


@pytest.mark.parametrize("number", ["0", "0.5", "3.5", "1.25", "9" * 400])
def test_pairs_have_a_limit_and_halves_alone(number: str) -> None:
    with pytest.raises(EdgeDBError, match=r"a matrix has 1 to 3 pairs, in steps of a half"):
        read_plan(f"layers.0={number}", CONFIG, 6)


def test_pairs_on_a_command_line_are_planes() -> None:
    assert (pairs("1"), pairs("1.5")) == (2, 3)
    with pytest.raises(ValueError, match="in steps of a half"):
        pairs("1.2")
