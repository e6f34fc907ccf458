"""What a model takes, told before there is a file, against files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

import edgedb
from edgedb.convert.storage import Options
from edgedb.measure.shapes import SHAPES
from edgedb.model.dbb import read_dbb
from edgedb.model.families import program_of
from edgedb.model.footprint import Footprint

MODELS = sorted((ROOT / "models").glob("smollm2-135m-instruct-*.dbb"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_file_is_as_large_as_was_told(path: Path) -> None:
    file = read_dbb(path, verify=False)
    found = Footprint.of(file.config, {name: w.kind for name, w in file.linears.items()})
    assert found.sizes == {name: weight.nbytes for name, weight in file.linears.items()}
    assert found.file_bytes == pytest.approx(file.size_bytes, rel=5e-3)


def test_memory_is_the_file_the_cache_and_the_rest(tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, context=256)
    found = Footprint(model.config, {n: w.nbytes for n, w in model.file.linears.items()})
    assert found.context() == model.longest_context and found.context(100) == 100
    one, two = found.memory_bytes(256), found.memory_bytes(512)
    assert two - one == pytest.approx(model.session().size_bytes, rel=0.05)
    assert one > found.file_bytes + model.session().size_bytes


def test_an_int8_cache_holds_whole_groups_of_64() -> None:
    shape = SHAPES["llama-1.1b"]
    half, narrow = (Footprint(shape, {}).memory_bytes(256, kv) for kv in ("float16", "int8"))
    assert half - narrow == 2 * shape.n_layers * shape.n_kv_heads * (128 - 68) * 256


def test_bits_are_those_of_the_layers_and_experts_are_read_in_part() -> None:
    config = SHAPES["qwen3-30b-a3b"]
    found = Options(pairs=1).footprint(config)
    assert found.layer_bits == pytest.approx(2.28, abs=0.01)
    inside = sum(size for name, size in found.sizes.items() if name.startswith("layers."))
    experts = sum(found.sizes[name] for name in program_of(config).stacks())
    assert found.token_bytes == inside - experts + experts * 8 // 128 + found.sizes["head"]


def test_a_budget_is_what_it_says() -> None:
    config = SHAPES["smollm2-135m"]
    by_bits = Options(bits=2.9).footprint(config)
    assert sum(by_bits.sizes.values()) == pytest.approx(2.9 * by_bits.n_weights / 8, rel=1e-3)
    by_size = Options(size_bytes=70_000_000).footprint(config)
    assert by_size.file_bytes == pytest.approx(70e6, rel=1e-3)


def test_learned_positions_bound_the_context() -> None:
    plain = SHAPES["smollm2-135m"]
    config = replace(plain, max_position_embeddings=512)
    assert Options().footprint(config).context() == 512
