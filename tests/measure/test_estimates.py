"""What fits a machine, and what is known of models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from places import ROOT

from edgedb.convert.storage import Options
from edgedb.measure.estimates import PAIRS, footprint, known_models, of_machine, of_model
from edgedb.measure.known import KNOWN, MACHINES, Machine
from edgedb.measure.shapes import SHAPES

PI = MACHINES[0]
QUALITY = ROOT / "bench" / "results" / "quality-amd-epyc-family-26-model-2.json"


def test_tokens_are_bandwidth_over_bytes() -> None:
    name, config = "Qwen/Qwen3-4B", SHAPES["qwen3-4b"]
    rows = of_model(name, config, PI, context=1000)
    assert [row.stored for row in rows] == ["1 pair", "1.5 pairs", "2 pairs", "3 pairs"]
    for row, pairs in zip(rows, PAIRS, strict=True):
        found = footprint(config, pairs)
        assert row.tokens_per_second == PI.bandwidth / found.token_bytes
        assert row.file_bytes == found.file_bytes and row.context == 1000
        assert row.memory_bytes == found.memory_bytes(1000)
    assert of_model(name, config, Machine("x", PI.memory_bytes))[0].tokens_per_second is None


def test_it_stores_as_convert_does() -> None:
    for config in (SHAPES["qwen3-30b-a3b"], SHAPES["smollm2-135m"]):
        for pairs in PAIRS:
            assert footprint(config, pairs) == Options(pairs=pairs).footprint(config)


def test_what_does_not_fit_is_offered_smaller() -> None:
    config = SHAPES["qwen3-4b"]
    usual, small = (footprint(config, pairs).memory_bytes(8192) for pairs in (2, 1.5))
    rows = {}
    for size in (usual, usual - 1, small - 1):
        machine = Machine("x", size + Machine.OTHERS_BYTES)
        (rows[size],) = (row for row in of_machine(machine) if row.model == "Qwen/Qwen3-4B")
    assert [(row.stored, row.fits) for row in rows.values()] == [
        ("2 pairs", True),
        ("1.5 pairs", True),
        ("2 pairs", False),
    ]


def test_known_models_go_by_size_and_each_has_a_shape() -> None:
    names = [name for name, _ in known_models()]
    sizes = [footprint(config, 1).n_weights for _, config in known_models()]
    assert set(names) == set(KNOWN) and sizes == sorted(sizes)


def test_known_quality_is_what_was_measured() -> None:
    """``make bench-quality`` writes it; where it is measured anew, it changes here too."""
    rows = json.loads(QUALITY.read_text(encoding="utf-8"))["rows"]
    ours = {float(row["name"].split()[1]): row["kl"] for row in rows if row["kind"] == "edgedb"}
    known = KNOWN["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert known.kl == pytest.approx({bits: ours[bits] for bits in known.kl}, rel=0.03)
    assert known.kl_at(2.28) == known.kl[2.3] and known.kl_at(6.9) is None


def test_a_machine_keeps_room_for_others() -> None:
    machine = Machine("x", 2 * 10**9)
    assert machine.holds(10**9) and not machine.holds(10**9 + 1)
    assert replace(machine, memory_bytes=10**8).holds(0) is False
