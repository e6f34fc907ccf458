"""Models in PyTorch: what they hold under which name, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from places import NOT_HERE  # noqa: E402
from tiny import TinySource, family_source  # noqa: E402

from edgedb.errors import EdgeDBError, UnsupportedModelError  # noqa: E402
from edgedb.model.families import FAMILIES, program_of  # noqa: E402
from edgedb.ops.program import Block  # noqa: E402
from edgedb.ops.recorder import Recorder  # noqa: E402
from tools import decoder  # noqa: E402
from tools.decoder import Decoder, in_type, load_teacher  # noqa: E402


def test_a_teacher_is_llama(shared: Path) -> None:
    if not (shared / "models/stories260K").exists():
        pytest.skip(NOT_HERE)
    from edgedb.convert.sources import open_source

    reference = np.load(shared / "ref/stories260K_ref.npz")
    model = load_teacher(open_source(shared / "models/stories260K"))
    logits = model.logits(torch.from_numpy(reference["ids"].astype(np.int64))[None])[0]
    np.testing.assert_allclose(logits.numpy(), reference["logits"], atol=2e-3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_have_the_names_of_the_program(name: str, tied: bool) -> None:
    source = family_source(name, tied=tied)
    program, teacher = program_of(source.config), load_teacher(source)
    matrices, tables = dict(teacher.matrices()), teacher.tables()
    assert list(tables) == program.tables() and ("head" in tables) is not tied
    assert [*matrices] == [name for name in program.matrices() if name not in tables]
    assert [name for name, _ in teacher.vectors()] == [*program.vectors()]
    for name, weight in (*teacher.vectors(), *tables.items()):
        assert np.array_equal(weight.numpy(), source.tensor(name)), name
    for name, module in matrices.items():
        weight = getattr(module, "weight", module)  # a stack of experts is a parameter
        assert np.array_equal(weight.numpy(), source.tensor(name)), name
    owned = len(matrices) + len(tables) + len(program.vectors())
    assert len(list(teacher.parameters())) == owned


def test_a_head_that_is_more_than_a_matrix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TinySource().config
    program = program_of(config)
    m = Recorder(1e-5, 16)
    for head in (
        m.linear(m.silu(m.input(64)), "embedding", 96),
        m.silu(m.linear(m.input(64), "embedding", 96)),
        m.softcap(m.softcap(m.linear(m.input(64), "embedding", 96), 3.0), 2.0),
    ):
        other = replace(program, head=Block(head))
        monkeypatch.setattr(decoder, "program_of", lambda _, other=other: other)
        with pytest.raises(UnsupportedModelError, match="llama: the loss multiplies with the head"):
            Decoder(config)


def test_learned_positions_bound_a_text() -> None:
    teacher = load_teacher(family_source("opt", max_position_embeddings=16))
    assert teacher.logits(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 96)
    with pytest.raises(EdgeDBError, match="17 tokens: this model has learned positions for 16"):
        teacher.logits(torch.zeros(1, 17, dtype=torch.int64))


def test_a_bias_of_the_head_is_a_column_of_it() -> None:
    teacher = load_teacher(family_source("phi", tied=False)).requires_grad_()
    hidden, head = teacher(torch.tensor([[1, 2, 3]]))
    assert hidden.shape[-1] == head.weight.shape[1] == 65
    logits = hidden[..., :64] @ teacher.tables()["head"].t() + dict(teacher.vectors())["head.bias"]
    torch.testing.assert_close(logits, teacher.logits(torch.tensor([[1, 2, 3]])))
    logits.sum().backward()
    assert (dict(teacher.vectors())["head.bias"].grad == 3).all()


def test_another_type_is_for_matrices_alone() -> None:
    teacher = load_teacher(family_source("llama", tied=False))
    narrow, same = in_type(teacher, torch.bfloat16), in_type(teacher, torch.float32)
    assert {v.dtype for _, v in narrow.vectors()} == {torch.float32}
    assert {m.weight.dtype for _, m in narrow.matrices()} == {torch.bfloat16}
    assert {t.dtype for t in narrow.tables().values()} == {torch.bfloat16}
    of = {name: weight.data_ptr() for name, weight in teacher.state_dict().items()}
    assert of == {name: weight.data_ptr() for name, weight in same.state_dict().items()}
