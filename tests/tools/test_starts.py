"""Where training starts: plans, the planes of a finished model, a student of another plan."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402

from edgedb.convert.fdb import fit  # noqa: E402
from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.format.packing import dequantize, pack_int8, quantize_int8  # noqa: E402
from edgedb.model.dbb import read_dbb  # noqa: E402
from edgedb.model.dbb_writer import DbbWriter  # noqa: E402
from edgedb.model.families import program_of  # noqa: E402
from tools import checkpoint, export_student  # noqa: E402
from tools.decoder import Decoder, load_teacher  # noqa: E402
from tools.quality import evaluate  # noqa: E402
from tools.starts import moved, student_of_model  # noqa: E402
from tools.student import STARTS, make_student, plan_of  # noqa: E402

MIXED = {"layers.0.attn_qkv": 4, "layers.0.mlp_gate_up": 3, "layers.1.mlp_down": 5}  # planes


def written(path: Path, spec, kinds: dict, source: TinySource) -> Path:
    """A ``.dbb`` of the source's weights, each matrix as ``kinds`` says."""
    with DbbWriter(path, source.config, spec, kinds, fingerprint="test") as writer:
        for name in writer.remaining:
            weight = source.tensor(name)
            if name not in kinds:
                writer.put(name, weight)
            elif kinds[name] == "int8":
                writer.put(name, pack_int8(*quantize_int8(weight)))
            else:
                writer.put(name, fit(weight, kinds[name]).tensor)
        writer.finish({})
    return path


def kinds_of(source: TinySource, **changes: object) -> dict:
    return dict.fromkeys(program_of(source.config).matrices(), 2) | {"embedding": "int8"} | changes


def ids_of(source: TinySource) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, source.config.vocab_size, (2, 16)))


def kl(student: Decoder, teacher: Decoder, ids: torch.Tensor) -> float:
    return evaluate(student, teacher, ids, bfloat16=False)["kl"]


@pytest.mark.parametrize("start", STARTS)
def test_more_planes_are_nearer_to_the_teacher(start: str) -> None:
    source = TinySource()
    teacher, ids = load_teacher(source), ids_of(source)
    seen = {name: torch.ones(m.weight.shape[1]) for name, m in teacher.matrices()}
    students = [
        make_student(teacher, start, seen, dict.fromkeys(seen, planes)) for planes in range(2, 7)
    ]
    found = [kl(student, teacher, ids) for student in students]
    assert all(more < fewer / 2 for fewer, more in itertools.pairwise(found))
    assert plan_of(students[1]) == dict.fromkeys(seen, 3)


def test_a_mixed_student_survives_file_and_export(tmp_path: Path, tiny_spec) -> None:
    source = TinySource(vocab_size=320)
    teacher = load_teacher(source)
    student = make_student(teacher, "least-squares", plan=MIXED)
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    loaded, _ = checkpoint.load_student(path)
    assert plan_of(loaded) == plan_of(student)
    export_student.export(path, tmp_path / "student.dbb")
    found = read_dbb(tmp_path / "student.dbb").linears
    read = dict(loaded.matrices())
    for name, module in student.matrices():
        assert torch.equal(module.weight(), read[name].weight())
        assert found[name].kind == MIXED.get(name, 2)
        assert np.array_equal(dequantize(found[name]), module.weight().detach().numpy())


def test_a_student_takes_the_planes_of_a_model(tmp_path: Path, tiny_spec) -> None:
    source = TinySource(vocab_size=320)
    teacher = load_teacher(source)
    kinds = kinds_of(source, **MIXED, embedding=3)
    path = written(tmp_path / "m.dbb", tiny_spec, kinds, source)
    student = student_of_model(path, teacher)
    assert plan_of(student) == kinds
    file = read_dbb(path)
    assert torch.equal(student.layers[0].mlp_norm, teacher.layers[0].mlp_norm)
    modules = dict(student.matrices()) | student.tables()
    for name, stored in file.linears.items():
        expected = dequantize(stored)
        off = np.abs(modules[name].weight().detach().numpy() - expected)
        # A cell that is all but empty may give a weight to its neighbour.
        assert (off < 0.02 * np.abs(expected).max()).mean() > 0.98
    latents = student.layers[0].attn_qkv.latent.flatten(1)[:, :64]
    weight = teacher.layers[0].attn_qkv.weight
    assert (latents == weight).float().mean() > 0.8


def test_a_model_that_no_student_starts_from_is_refused(tmp_path: Path, tiny_spec) -> None:
    source = TinySource(vocab_size=320)
    kinds = kinds_of(source, **{"layers.1.attn_out": "int8"})
    path = written(tmp_path / "m.dbb", tiny_spec, kinds, source)
    with pytest.raises(EdgeDBError, match=r"layers\.1\.attn_out is not of planes"):
        student_of_model(path, load_teacher(source))
    with pytest.raises(EdgeDBError, match="another model"):
        student_of_model(path, load_teacher(TinySource()))


def test_a_student_moves_to_another_plan() -> None:
    source = TinySource()
    teacher, ids = load_teacher(source), ids_of(source)
    student = make_student(teacher, "least-squares", plan=MIXED)
    plan = {"layers.0.attn_out": 3, "layers.0.attn_qkv": 3, "layers.1.mlp_down": 2, "embedding": 3}
    found = moved(student, plan, ids)
    assert plan_of(found) == plan_of(student) | plan
    for name, module in found.matrices():
        before, now = dict(student.matrices())[name].weight(), module.weight()
        assert torch.equal(before, now) == (name not in plan), name
    goal = teacher.layers[0].attn_out.weight
    off = [(m.layers[0].attn_out.weight() - goal).norm() for m in (found, student)]
    assert off[0] < 0.6 * off[1]
    assert kl(found, teacher, ids) > 0
    again = moved(found, plan, ids)
    assert again is found


def test_a_table_that_moves_goes_by_its_own_latents() -> None:
    source = TinySource()
    ids = ids_of(source)
    student = make_student(load_teacher(source), "least-squares")
    plain = student.embedding.detach().clone()
    errors = []
    for planes in (3, 4):
        student = moved(student, {"embedding": planes}, ids)
        errors.append((student.embedding() - plain).norm() / plain.norm())
    assert errors[1] < 0.75 * errors[0] < 0.25
