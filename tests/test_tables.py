"""Embedding and head as stacked pairs that learn: levels, gradients, constraints, file, export."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgedb-llm[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402

from edgedb.packing import dequantize  # noqa: E402
from tools import checkpoint, export_student  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.fdb import fit  # noqa: E402
from tools.student import make_student  # noqa: E402
from tools.tables import (  # noqa: E402
    FDBTable,
    cells,
    decode_table,
    encode_table,
    nearest,
    pack_table,
    paired_tables,
    project_table,
    table_codes,
)


def random_table(rows: int = 9, cols: int = 100, pairs: int = 2) -> FDBTable:
    weight = np.random.default_rng(0).normal(size=(rows, cols)).astype(np.float32)
    table = FDBTable(rows, cols, pairs)
    table.load(torch.from_numpy(weight), fit(weight, pairs).tensor)
    return table


def all_levels(table: FDBTable) -> torch.Tensor:
    """Every level of every group ``[rows, groups, 4**P]``, by plain sums in float64."""
    unit, c = table_codes(table.alphas)
    scales = (unit.double().repeat_interleave(2, -1) * c.double()).detach()
    codes = itertools.product((0, 1), repeat=c.shape[-1])
    picked = [torch.tensor(bits[::-1], dtype=torch.float64) for bits in codes]
    return torch.stack([(scales * bits).sum(-1) for bits in picked], dim=-1)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_values_are_the_nearest_levels(pairs: int) -> None:
    table = random_table(pairs=pairs)
    unit, c = table_codes(table.alphas)
    code, value = nearest(table.latent, unit, c)
    levels = all_levels(table)
    torch.testing.assert_close(value.double(), levels.gather(-1, code.long()))
    best = (table.latent[..., None] - levels[:, :, None]).abs().min(-1).values
    torch.testing.assert_close((table.latent - value).double().abs(), best, atol=1e-6, rtol=0)


def test_gradients_go_straight_through() -> None:
    table = random_table(cols=128)
    grad = torch.randn(9, 128)
    table().backward(grad)
    unit, c = table_codes(table.alphas)
    code, _ = nearest(table.latent, unit, c)
    grouped = grad.unflatten(1, (2, 64))
    for plane in range(4):
        expected = (grouped * (code >> plane & 1)).sum(-1)
        torch.testing.assert_close(table.alphas.grad[..., plane], expected)
    levels = all_levels(table)
    low, high = levels.min(-1, True).values, levels.max(-1, True).values
    inside = (table.latent >= low) & (table.latent <= high)
    assert torch.equal(table.latent.grad[inside], grouped[inside])
    back = torch.where(table.latent > high, grouped.clamp_min(0), grouped.clamp_max(0))
    assert torch.equal(table.latent.grad[~inside], back[~inside])


def test_scales_keep_their_signs_and_the_format() -> None:
    table = random_table()
    with torch.no_grad():
        table.alphas.add_(torch.randn_like(table.alphas))
    project_table(table)
    first, second = table.alphas[..., 0::2], table.alphas[..., 1::2]
    assert (first * second < 0).all()
    assert (table.alphas * table.sign > 0).all()
    _, c = table_codes(table.alphas)
    assert c.abs().max() <= 127 and (c[..., 0::2] + c[..., 1::2]).abs().max() <= 127


def test_a_pair_of_zeros_gets_both_signs() -> None:
    table = FDBTable(2, 64, 2)
    table.fill(torch.zeros(2, 1, 64), torch.tensor([[[1.0, -0.5, 0.0, 0.0]]] * 2))
    assert table.sign.flatten().tolist() == [1, -1, 1, -1] * 2


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_packed_table_is_the_table_bit_for_bit(pairs: int) -> None:
    table = random_table(rows=70, cols=172, pairs=pairs)
    assert np.array_equal(dequantize(pack_table(table)), table().detach().numpy())


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_latents_survive_a_byte(pairs: int) -> None:
    table = random_table(pairs=pairs)
    unit, c = table_codes(table.alphas)
    stored = encode_table(table.latent, unit, c)
    again = decode_table(stored, unit, c)
    code, value = nearest(table.latent, unit, c)
    assert torch.equal(nearest(again, unit, c)[1], value)
    _, below, above = cells(unit, c, code)
    inside = (table.latent - value <= above) & (value - table.latent <= below)
    positions = {1: 64, 2: 16, 3: 4}[pairs]
    off = (again - table.latent).abs() / torch.maximum(below, above)
    assert off[inside].max() <= 1.01 / positions


def test_a_fit_that_is_not_the_nearest_level_is_kept() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(16, 64)).astype(np.float32)
    mixed = (rng.normal(size=(64, 64)) * np.geomspace(1, 0.05, 64)).astype(np.float32)
    fitted = fit(weight, 2, hessians=[mixed @ mixed.T]).tensor
    table = FDBTable(16, 64, 2)
    table.load(torch.from_numpy(weight), fitted)
    expected = dequantize(fitted)
    off = np.abs(table().detach().numpy() - expected)
    assert (off < 0.05 * np.abs(expected).max()).mean() > 0.99


def test_student_with_pairs_survives_file_and_export(tmp_path, tiny_spec) -> None:
    from edgedb.dbb import read_dbb

    teacher = load_teacher(TinySource(vocab_size=320, tied=False))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 320, (2, 16)))
    student = paired_tables(make_student(teacher, "least-squares"), 2, ids)
    path = tmp_path / "student.safetensors"
    checkpoint.save_student(path, student, step=1, provenance={}, tokenizer=tiny_spec)
    loaded, _ = checkpoint.load_student(path)
    assert torch.equal(student.logits(ids), loaded.logits(ids))
    export_student.export(path, tmp_path / "student.dbb")
    found = read_dbb(tmp_path / "student.dbb")
    for name, table in student.tables().items():
        assert np.array_equal(dequantize(found.linears[name]), table().detach().numpy())
