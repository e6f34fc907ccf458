"""Embedding and head in planes that learn: student, file, export."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402

from edgedb.format.packing import dequantize  # noqa: E402
from tools import checkpoint, export_student  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.starts import moved  # noqa: E402
from tools.student import make_student  # noqa: E402


@pytest.mark.parametrize("planes", [3, 4])
def test_student_with_planes_survives_file_and_export(tmp_path, tiny_spec, planes: int) -> None:
    from edgedb.model.dbb import read_dbb

    teacher = load_teacher(TinySource(vocab_size=320, tied=False))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 320, (2, 16)))
    plan = {"embedding": planes, "head": planes}
    student = moved(make_student(teacher, "least-squares"), plan, ids)
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    loaded, _ = checkpoint.load_student(path)
    assert torch.equal(student.logits(ids), loaded.logits(ids))
    export_student.export(path, tmp_path / "student.dbb")
    found = read_dbb(tmp_path / "student.dbb")
    for name, table in student.tables().items():
        assert found.linears[name].kind == planes
        assert np.array_equal(dequantize(found.linears[name]), table().detach().numpy())
