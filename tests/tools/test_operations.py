"""The paper's two figures, and bits counted one by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from dbb_files import random_planes

from edgedb.format.packing import pack_planes, unpack_planes
from edgedb.format.tensors import PairTensor
from edgedb.model.config import ModelConfig
from edgedb.model.dbb import read_dbb
from edgedb.model.families import program_of
from tools.operations import count, main, ones_per_weight

LLAMA_7B = ModelConfig(
    model_type="llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, n_layers=32,
    n_heads=32, n_kv_heads=32, head_dim=128, max_position_embeddings=2048,
)  # fmt: skip


def test_the_papers_figures() -> None:
    ones = dict.fromkeys(program_of(LLAMA_7B).matrices(), 2 * 0.4)  # two planes, 60% zeros
    found = count(LLAMA_7B, 32, ones)
    assert found.dense / 1e9 == pytest.approx(423.4, abs=0.05)
    assert found.planes / 1e9 == pytest.approx(29.8, abs=0.2)


def test_bits_are_counted() -> None:
    rng = np.random.default_rng(3)
    rows, cols = 70, 65
    pairs = [random_planes(rows, cols, rng) for _ in range(2)]
    blocks = np.stack([pack_planes(*pair) for pair in pairs])
    found = ones_per_weight(PairTensor(blocks, np.ones((2, rows), np.float32), rows, cols))
    for (b1, b2, _, _), shares in zip(pairs, found, strict=True):
        assert shares == pytest.approx((b1.mean(), b2.mean()))


def test_the_command(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["operations", str(tiny_model), "--tokens", "8"])
    main()
    report = json.loads(capsys.readouterr().out)
    file = read_dbb(tiny_model)
    layers = [t for name, t in file.linears.items() if name.startswith("layers.")]
    zeros = [1 - unpack_planes(t.blocks[0], t.rows, t.cols)[0].mean() for t in layers]
    assert report["zeros_b1"] == pytest.approx(
        np.average(zeros, weights=[t.rows * t.cols for t in layers])
    )
    assert report["ratio"] > 1
