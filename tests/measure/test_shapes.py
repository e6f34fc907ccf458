"""Random weights in the shapes of known models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedb import EdgeDBError
from edgedb.format.tensors import Experts, PairTensor
from edgedb.measure import benchmark, shapes
from edgedb.measure.shapes import SHAPES, bytes_per_token, random_weights, write_random
from edgedb.model.config import ModelConfig
from edgedb.model.dbb import read_dbb
from edgedb.model.families import program_of

SMALL = ModelConfig("llama", 300, 96, 136, 2, 4, 2, 24, 128)
MIXED = ModelConfig(
    "qwen3_moe", 300, 96, 136, 2, 4, 2, 24, 128, n_experts=4, experts_per_token=2, expert_size=40
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setitem(SHAPES, "mixed", MIXED)


@pytest.mark.usefixtures("small")
def test_random_weights_keep_the_format() -> None:
    weights = random_weights("small", pairs=2.5)
    assert set(weights.linears) == set(program_of(SMALL).matrices())
    tensor = weights.linears["layers.1.mlp_gate_up"]
    assert isinstance(tensor, PairTensor) and tensor.planes == 5
    assert tensor.half is not None and tensor.half[..., 512:].view(np.int8).min() >= -127
    codes = tensor.blocks[..., -128:].view(np.int8).astype(int)
    assert np.abs(codes[..., :64] + codes[..., 64:]).max() <= 127
    rows = benchmark.run(None, shape="small", prompt=[4], decode=[2], repetitions=1, threads=[1])
    assert [r.test for r in rows] == ["pp4", "tg2"]
    assert rows[0].model == "small"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", ["small", "mixed"])
def test_the_same_as_a_file(shape: str, tmp_path: Path) -> None:
    path = write_random(tmp_path / "m.dbb", shape, 1.5)
    file, made = read_dbb(path), random_weights(shape, 1.5)
    assert file.config == made.config == SHAPES[shape]
    kinds = {name: tensor.kind for name, tensor in made.linears.items()}
    assert {name: tensor.kind for name, tensor in file.linears.items()} == kinds
    read = shapes.Weights(file.config, file.linears, file.vectors)
    assert bytes_per_token(read) == bytes_per_token(made)
    was = path.stat()
    rows = benchmark.run(
        None, shape=shape, pairs=1.5, file=path, prompt=[4], decode=[2], repetitions=1, threads=[1]
    )
    assert (path.stat().st_mtime_ns, rows[0].model) == (was.st_mtime_ns, shape)
    assert rows[0].bits_per_weight < 8  # of all experts' weights
    with pytest.raises(EdgeDBError, match="is not small at 2 pairs; name another file"):
        write_random(path, "small", 2)


@pytest.mark.usefixtures("small")
def test_a_token_reads_its_experts_alone() -> None:
    weights = random_weights("mixed")
    stack = weights.linears["layers.0.experts_down"]
    assert isinstance(stack, Experts) and len(stack) == 4
    total = sum(tensor.nbytes for tensor in weights.linears.values())
    unread = sum(t.nbytes // 2 for t in weights.linears.values() if isinstance(t, Experts))
    assert bytes_per_token(weights) == total - unread - weights.linears["embedding"].nbytes


@pytest.mark.parametrize(
    ("name", "weights", "read"),
    [
        ("llama-2-7b", 6.738e9, 6.607e9),
        ("llama-1.1b", 1.100e9, 1.034e9),
        ("smollm2-135m", 134.5e6, 134.5e6),
        ("llama-3.2-1b", 1.236e9, 1.236e9),
        ("qwen3-0.6b", 0.596e9, 0.596e9),
        ("gemma-3-1b", 0.9998e9, 0.9998e9),
        ("qwen3-4b", 4.022e9, 4.022e9),
        ("qwen3-30b-a3b", 30.53e9, 3.042e9),
    ],
)
def test_known_shapes_have_their_published_sizes(name: str, weights: float, read: float) -> None:
    """And a token reads as many of them as published."""
    config, program = SHAPES[name], program_of(SHAPES[name])
    sizes = program.sizes()
    assert sum(sizes.values()) == pytest.approx(weights, rel=1e-3)
    unread = 0 if config.tie_word_embeddings else sizes["embedding"]
    for stack, count in program.stacks().items():
        unread += sizes[stack] * (count - config.experts_per_token) // count
    assert sum(sizes.values()) - unread == pytest.approx(read, rel=1e-3)
