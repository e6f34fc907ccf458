"""What ``edgedb info`` says of a file with halves of pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dbb_files import CONFIG, TOKENIZER, random_linear, write_model

from edgedb.cli import ui
from edgedb.format.packing import unpack_half, unpack_planes
from edgedb.format.tensors import Kind, PairTensor
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.model.summary import count_bits, summarize

BITS = {2: 2.25, 3: 3.375, 4: 4.5, 5: 5.625}


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything in the layers in one pair and a half."""
    path = tmp_path_factory.mktemp("summary") / "m.dbb"
    shapes = program_of(CONFIG).matrices()
    kinds: dict[str, Kind] = {n: "int8" if n in ("embedding", "head") else 3 for n in shapes}
    with DbbWriter(path, CONFIG, TOKENIZER, kinds) as writer:
        for name in writer.remaining:
            if name in shapes:
                writer.put(name, random_linear(kinds[name], *shapes[name]))
            else:
                writer.put(name, np.ones(program_of(CONFIG).vectors()[name], np.float32))
        writer.finish({})
    return path


def test_halves_are_named_and_their_zeros_counted(halved: Path) -> None:
    summary = summarize(read_dbb(halved))
    assert summary["kinds"]["layers"] == {"1.5 pairs": 8}
    pair, half = summary["sparsity"]
    assert 0.5 < pair["b2"] < 0.7
    assert 0.5 < half["b1"] < 0.7 and half["b2"] is None
    assert pair["weights"] == half["weights"]
    assert sum(summary["bytes"].values()) == halved.stat().st_size


def test_people_read_them(halved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ui.model_info(summarize(read_dbb(halved)))
    shown = capsys.readouterr().out
    assert "layers     8 x 1.5 pairs" in shown
    (line,) = (line for line in shown.splitlines() if "pair 1" in line)
    assert "b1 " in line and "b2" not in line


def test_a_mixed_model_counts_each_plane_by_its_weights(tmp_path: Path) -> None:
    first, second, _ = summarize(read_dbb(write_model(tmp_path / "m.dbb")))["sparsity"]
    assert 0.5 < second["b1"] < 0.7 and 0.5 < second["b2"] < 0.7
    assert second["weights"] < first["weights"]


@pytest.mark.parametrize("planes", [2, 3, 4, 5])
def test_bits_of_a_matrix(planes: int) -> None:
    tensor = random_linear(planes, 640, 640)
    assert isinstance(tensor, PairTensor)
    scales = 32 * ((planes + 1) // 2) / 640
    assert tensor.bits_per_weight == pytest.approx(BITS[planes] + scales)
    for blocks, _ in tensor.terms():
        if blocks.shape[2] == 576:
            bits = unpack_half(blocks, 640, 640)[:1]
        else:
            bits = unpack_planes(blocks, 640, 640)[:2]
        assert count_bits(blocks) == [int(b.sum()) for b in bits]
