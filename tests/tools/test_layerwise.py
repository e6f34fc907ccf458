"""A model a layer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource, family_source  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.model.families import FAMILIES, program_of  # noqa: E402
from tools.decoder import Layer, load_teacher  # noqa: E402
from tools.layerwise import (  # noqa: E402
    Teacher,
    load_whole,
    matrices_of,
    save_whole,
    vectors_of,
)
from tools.student import empty_student  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_one_by_one_are_the_model(family: str) -> None:
    source = family_source(family)
    teacher, ids = Teacher(source, torch.device("cpu")), torch.arange(14).view(2, 7)
    turns = teacher.ends.turns(7)
    where = teacher.ends.around(turns)
    x = teacher.ends.enter(ids, where)
    for i in range(source.config.n_layers):
        x = teacher.layer(i)(x, turns)
    hidden, head = teacher.ends.leave(x, where)
    expected, expected_head = load_teacher(source)(ids)
    assert torch.equal(hidden, expected) and torch.equal(head.weight, expected_head.weight)


def test_what_a_layer_has_is_what_its_program_names() -> None:
    config = TinySource().config
    layer = empty_student(config, plan={"layers.0.mlp_down": 3}).layers[0]
    assert isinstance(layer, Layer)
    block = program_of(config).kinds[0]
    assert list(matrices_of(layer)) == list(block.matrices)
    assert list(vectors_of(layer)) == list(block.vectors)
    assert matrices_of(layer)["mlp_down"].planes == 3


def test_a_state_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_whole(path, {"x": torch.ones(2)})
    assert torch.equal(load_whole(path)["x"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    path.write_bytes(b"torn")
    with pytest.raises(EdgeDBError, match="cannot be read"):
        load_whole(path)
    with pytest.raises(EdgeDBError, match="is the disk full"):
        save_whole(tmp_path / "no folder" / "state.pt", {})
