"""The benchmark's bookkeeping. Speed itself is measured by `make bench`, not asserted here."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgedb import EdgeDBError
from edgedb.measure import benchmark
from edgedb.measure.shapes import SHAPES
from edgedb.model.config import ModelConfig
from edgedb.ops import library


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> list[benchmark.BenchRow]:
    return benchmark.run(tiny_model, prompt=[5], decode=[3], repetitions=2, threads=[1, 2])


def test_every_test_runs_at_every_thread_count(rows: list[benchmark.BenchRow]) -> None:
    assert [(r.threads, r.test) for r in rows][:2] == [(1, "pp5"), (1, "tg3")]
    assert all(len(r.repetitions) == 2 and r.mean > 0 for r in rows)
    decode = next(r for r in rows if r.test == "tg3")
    assert decode.gb_per_second > 0
    assert next(r for r in rows if r.test == "pp5").gb_per_second == 0


def test_decoding_is_measured_with_every_kernel(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library.available()[0]:
        pytest.skip(library.available()[1])
    options: dict[str, Any] = {"prompt": [5], "decode": [3], "repetitions": 1, "threads": [1]}
    options |= {"isa": "scalar", "all_kernels": True}
    rows = benchmark.run(tiny_model, **options)
    assert [(r.test, r.kernel) for r in rows] == [
        ("pp5", "lookup"),
        ("tg3", "lookup"),
        ("tg3", "popcount"),
        ("tg3", "popcount4"),
    ]
    assert "| popcount4 |" in benchmark.report(rows)
    monkeypatch.setenv("EDGEDB_KERNEL", "popcount")
    assert {r.kernel for r in benchmark.run(tiny_model, **options)} == {"popcount"}


def test_tests_run_behind_positions(tiny_model: Path) -> None:
    options: dict[str, Any] = {"prompt": [5], "decode": [3], "repetitions": 1, "threads": [1]}
    rows = benchmark.run(tiny_model, depth=40, kv_dtype="int8", **options)
    assert [r.test for r in rows] == ["pp5@d40", "tg3@d40"]
    assert len(benchmark.run(tiny_model, depth=40, all_kernels=True, **options)) == 2
    assert rows[1].gb_per_second > 0
    with pytest.raises(EdgeDBError, match="tokens do not fit"):
        benchmark.run(tiny_model, depth=10**6, **options)
    with pytest.raises(EdgeDBError, match="depth"):
        benchmark.run(tiny_model, depth=-1, **options)


def test_a_shape_takes_more_positions_than_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig("llama", 96, 64, 128, 1, 2, 1, 32, 128)
    monkeypatch.setitem(SHAPES, "small", config)
    options: dict[str, Any] = {"prompt": [], "decode": [2], "repetitions": 1, "threads": [1]}
    for file in (None, tmp_path / "small.dbb"):
        row, *_ = benchmark.run(None, shape="small", file=file, depth=300, **options)
        assert row.test == "tg2@d300"


def test_rows_say_where_weights_lay(tiny_model: Path) -> None:
    options: dict[str, Any] = {"prompt": [], "decode": [2], "repetitions": 1, "threads": [1]}
    for memory in ("map", "copy"):
        row, *_ = benchmark.run(tiny_model, memory=memory, **options)
        assert row.memory.startswith(memory)
        assert f"| {row.memory} |" in benchmark.report([row])
    with pytest.raises(EdgeDBError, match="memory"):
        benchmark.run(tiny_model, memory="disk", **options)


def test_positions_are_read_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    read = benchmark.Decoder.read_prompt

    def note(self: benchmark.Decoder, n: int) -> None:
        lengths.append(n)
        read(self, n)

    monkeypatch.setattr(benchmark.Decoder, "read_prompt", note)
    benchmark.run(tiny_model, prompt=[5], decode=[], depth=40, repetitions=2, threads=[1])
    assert lengths[0] == 40 and 40 not in lengths[1:]


def test_reports_name_machine_and_commit(rows: list[benchmark.BenchRow]) -> None:
    machine = benchmark.Machine.here()
    assert machine.cpu and machine.commit
    markdown = benchmark.report(rows, "md")
    assert machine.cpu in markdown and machine.commit in markdown
    assert markdown.count("\n| tiny ") == len(rows)
    document = json.loads(benchmark.report(rows, "json"))
    assert document["machine"]["commit"] == machine.commit
    assert len(document["rows"]) == len(rows)
    records = list(csv.DictReader(io.StringIO(benchmark.report(rows, "csv"))))
    assert [float(r["mean"]) for r in records] == [r.mean for r in rows]
    with pytest.raises(EdgeDBError, match="yaml"):
        benchmark.report(rows, "yaml")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model": None}, "either"),
        ({"model": None, "shape": "gpt-5"}, "shape = .gpt-5.: expected .*qwen3-4b"),
        ({"model": None, "shape": "llama-1.1b", "repetitions": 0}, "repetitions"),
    ],
)
def test_impossible_requests(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(EdgeDBError, match=match):
        benchmark.run(**arguments)  # type: ignore[arg-type]
