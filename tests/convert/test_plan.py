"""Plans: one line of text, which counts pairs, to the planes of every matrix."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TinySource

from edgedb.convert.plan import pairs, plan_text, read_plan, read_plan_file, write_plan_file
from edgedb.errors import EdgeDBError
from edgedb.model.families import program_of

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


@settings(max_examples=100, deadline=None)
@given(planes=st.lists(st.sampled_from((2, 3, 4, 6)), min_size=9, max_size=9))
def test_what_is_written_is_read_as_it_was(planes: list[int]) -> None:
    matrices = [name for name in program_of(CONFIG).matrices() if name.startswith("layers.")]
    kinds = dict(zip(matrices, itertools.cycle(planes), strict=False)) | {"embedding": planes[-1]}
    assert read_plan(plan_text(kinds), CONFIG, 8) == kinds


def test_a_plan_is_short_where_it_can_be() -> None:
    matrices = [name for name in program_of(CONFIG).matrices() if name.startswith("layers.")]
    kinds = dict.fromkeys(matrices, 2) | {"layers.0.mlp_down": 3, "layers.1.mlp_down": 3}
    assert plan_text(kinds | {"embedding": "int8"}) == "1, layers.0-1.mlp_down=1.5"
    assert plan_text(kinds | {"layers.0.mlp_down": 2}) == "1, layers.1.mlp_down=1.5"
    assert plan_text({"embedding": "int8"}) == ""


def test_a_file_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan"
    write_plan_file(file, "1, layers.0=2", ["planes  0", "attn_qkv  22"])
    assert read_plan_file(file) == "1, layers.0=2"
    file.write_text("1,\nlayers.0=2 # first\n\n# last\nlayers.3=1.5\n")
    assert read_plan_file(file) == "1, layers.0=2, layers.3=1.5"
    with pytest.raises(EdgeDBError, match="No such file"):
        write_plan_file(tmp_path / "none" / "plan", "1", [])
