"""How an export stores each matrix: pairs, plans and tables."""

from __future__ import annotations

import pytest
from tiny import TinySource

from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError
from edgedb.model.families import program_of

CONFIG = TinySource(tied=False).config


def test_a_plan_says_which_matrices_have_other_pairs() -> None:
    kinds = Options(pairs=1, plan="layers.1=2, layers.*.mlp_down=1.5", embedding="2").kinds(CONFIG)
    assert set(kinds) == set(program_of(CONFIG).matrices())
    assert (kinds["layers.0.attn_qkv"], kinds["layers.1.attn_qkv"]) == (2, 4)
    assert kinds["layers.0.mlp_down"] == kinds["layers.1.mlp_down"] == 3
    assert (kinds["embedding"], kinds["head"]) == (4, 4)
    assert Options(pairs=1, plan="head=3").kinds(CONFIG)["head"] == 6


def test_halves_of_pairs_everywhere() -> None:
    kinds = Options(pairs=1.5, embedding="1.5", head="2").kinds(CONFIG)
    assert kinds.pop("head") == 4
    assert set(kinds.values()) == {3}


def test_tables_follow_the_method_where_nothing_is_said() -> None:
    assert Options().kinds(CONFIG)["embedding"] == "int8"
    assert set(Options(method="dense16").kinds(CONFIG).values()) == {"float16"}
    assert Options(head="float32").kinds(CONFIG)["head"] == "float32"


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(EdgeDBError, match=r"layers\.2=2: expected pairs"):
        Options(plan="layers.2=2").kinds(CONFIG)
    with pytest.raises(EdgeDBError, match="no use to the method int8"):
        Options(method="int8", plan="layers.0=2").kinds(CONFIG)
