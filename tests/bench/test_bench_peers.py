"""The bench against other engines: arithmetic, targets and report, with workers that are fakes."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from places import ROOT

from bench.peers import cases, random_models, read_worker, report, variants, worker
from bench.peers.cases import (
    AVX2_PAIR,
    LLAMA_1B,
    LLAMA_7B,
    ONE_PAIR,
    READ,
    SMOLLM2,
    Case,
    Contestant,
    Trial,
    peer,
)
from bench.peers.results import Key, Results
from bench.peers.runner import Journal, cpus_for, run_case
from bench.peers.targets import BUSY, EXTRAS, Target, targets
from edgedb import EdgeDBError
from edgedb.measure.shapes import SHAPES
from edgedb.model.config import ModelConfig

HEADER = {"cpu": "A CPU", "cores": 2, "system": "Linux", "commit": "abc"}
HEADER |= {
    "peers": "fake 1",
    "command": "make bench-peers",
    "date": "2026-01-01",
    "disturbed": "0 of 9",
}


def contestant(name: str, rate: float, *how: str, tests: tuple[str, ...] = ()) -> Contestant:
    command = (sys.executable, str(ROOT / "tests" / "fake_peer.py"), str(rate), *how)
    return Contestant(name, command, tests=tests or ("decode", "prompt"))


def fake_case(*more: Contestant, model: str = LLAMA_7B) -> Case:
    contestants = (
        Contestant(READ, contestant(READ, 100_000).command, tests=()),
        contestant(ONE_PAIR, 95),
        contestant(peer("TQ2_0"), 50),
        contestant(peer("Q4_0"), 20),
        *more,
    )
    return Case(model, contestants, n_prompt=8, n_decode=4)


def record(name: str, number: int, value: float, **more: Any) -> dict[str, Any]:
    base = {"model": SMOLLM2, "name": name, "test": "decode", "threads": 1, "round": number}
    return {**base, "value": value, **more}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run.jsonl", {"commit": "abc"})


def test_ratios_are_taken_inside_rounds() -> None:
    # The machine is half as fast in the second round; only one of them ran in the fourth.
    ours, theirs = [100.0, 50.0, 90.0, 500.0], [40.0, 20.0, 45.0]
    records: list[dict[str, Any]] = [{"model": SMOLLM2, "name": n} for n in ("a", "b")]
    records += [record("a", i, value, limit=200_000) for i, value in enumerate(ours)]
    records += [record("b", i, value) for i, value in enumerate(theirs)]
    records[0]["bytes_per_token"] = 1000
    found = Results(SMOLLM2, records)
    ratio = found.ratio(Key("a", "decode", 1), Key("b", "decode", 1))
    assert ratio is not None
    assert ratio.values == (2.5, 2.5, 2.0)
    assert (ratio.median, ratio.low, ratio.high) == (2.5, 2.0, 2.5)
    share = found.share_of_limit(Key("a", "decode", 1))
    assert share is not None and share.values == (0.5, 0.25, 0.45, 2.5)
    assert found.ratio(Key("a", "prompt", 1), Key("b", "prompt", 1)) is None
    # At the limit ours would run 200 tokens a second.
    ceiling = found.ceiling(Key("a", "decode", 1), Key("b", "decode", 1))
    assert ceiling is not None and ceiling.values == (5, 10, 200 / 45)


def test_the_best_series_is_by_median() -> None:
    records: list[dict[str, Any]] = [{"model": SMOLLM2, "name": n} for n in ("a", "b")]
    records += [record("a", i, value) for i, value in enumerate([10, 11, 900])]
    records += [record("b", i, value, threads=2) for i, value in enumerate([20, 21, 22])]
    found = Results(SMOLLM2, records)
    assert found.best(["a", "b"], "decode", [1, 2]) == Key("b", "decode", 2)
    assert found.best(["a"], "decode", [2]) is None
    ratio = found.ratio_of_best(["b"], ["a"], "decode", [1, 2])
    assert ratio is not None and ratio.median == 21 / 11


def test_targets_compare_with_their_bounds() -> None:
    spread = Results(SMOLLM2, [{"model": SMOLLM2, "name": "a"}, record("a", 0, 0.6)])
    value = spread.value(Key("a", "decode", 1))
    assert Target("fast enough", 0.5, value).met is True
    assert Target("fast enough", 0.61, value).met is False
    assert Target("soon enough", 0.6, value, at_most=True).met is True
    assert Target("soon enough", 0.5, value, at_most=True).met is False
    assert Target("never measured", 1, None).met is None


def test_every_target_finds_its_figures(journal: Journal) -> None:
    assert all(target.met is None for target in targets({}))
    run_case(fake_case(), journal, ROOT, 2)
    found = {LLAMA_7B: Results(LLAMA_7B, journal.records)}
    lines = {t.what.removeprefix("Llama-2 7B: "): t for t in targets(found) if t.found}
    over = lines["decode, edgedb 1 pair, 1 thread: over llama.cpp TQ2_0"]
    assert over.found is not None and over.found.median == pytest.approx(1.9)
    assert lines["decode, edgedb 1 pair, 1 thread: over llama.cpp Q4_0"].met is True
    share = lines["decode, edgedb 1 pair, 2 threads: share of the read limit"]
    assert share.found is not None and share.found.median == pytest.approx(0.95)
    best = lines["prompt, edgedb 1 pair, 1 thread: over the best of llama.cpp's formats"]
    assert best.met is False
    extra = [{"model": EXTRAS, "name": ONE_PAIR}]
    extra += [
        record(ONE_PAIR, 0, value, model=EXTRAS, test=BUSY, threads=threads)
        for threads, value in ((1, 100.0), (2, 95.0))
    ]
    busy = next(t for t in targets({EXTRAS: Results(EXTRAS, extra)}) if t.found)
    assert busy.met is True


def test_an_interrupted_run_goes_on(journal: Journal) -> None:
    case = fake_case()
    assert not run_case(case, journal, ROOT, 3, deadline=0)  # always one trial
    assert journal.rounds(LLAMA_7B) == 1
    assert {(r["test"], r["threads"]) for r in journal.records if "round" in r} == {("decode", 1)}
    again = Journal(journal.path, {"commit": "abc"})
    assert run_case(case, again, ROOT, 3)
    assert again.rounds(LLAMA_7B) == 3
    found = Results(LLAMA_7B, again.records)
    assert all(value and len(value.values) == 3 for value in map(found.value, found.keys))
    measured = [r for r in again.records if "round" in r]
    assert len(measured) == 3 * 4 * 3  # contestants, trials, rounds: nothing twice
    said: list[str] = []
    assert run_case(case, again, ROOT, 3, progress=said.append)
    assert not said  # nothing is started when all rounds are there
    assert Journal(journal.path, {"commit": "def"}).records == []


def test_the_order_of_contestants_turns(journal: Journal) -> None:
    run_case(fake_case(), journal, ROOT, 2)
    for number, first in ((0, ONE_PAIR), (1, peer("TQ2_0"))):
        names = [r["name"] for r in journal.records if r.get("round") == number]
        assert names[0] == first


@pytest.mark.parametrize(("how", "reason"), [("dead", "no such model"), ("dies", "out of memory")])
def test_a_worker_that_stops_is_named(journal: Journal, how: str, reason: str) -> None:
    case = fake_case(contestant(peer("Q2_K"), 10, how))
    with pytest.raises(EdgeDBError, match=rf"llama\.cpp Q2_K stopped: {reason}"):
        run_case(case, journal, ROOT, 1)
    assert journal.rounds(LLAMA_7B) == 0


def test_reports_hold_every_figure(journal: Journal, tmp_path: Path) -> None:
    run_case(fake_case(), journal, ROOT, 2)
    run_case(fake_case(model=LLAMA_1B), journal, ROOT, 1)
    found = {model: Results(model, journal.records) for model in (LLAMA_1B, LLAMA_7B)}
    page = report.markdown(HEADER, found)
    assert "A CPU, 2 cores, Linux; edgedb commit abc; fake 1." in page
    assert "## Llama-2 7B, 2 rounds" in page
    assert "| edgedb 1 pair | llama.cpp TQ2_0 | 1.90 (1.90 to 1.90) |" in page
    assert "**missed**" in page and "| met |" in page and "not measured" not in page
    assert re.search(r"^Targets of what this run did not measure: [1-9]\d*\.$", page, re.MULTILINE)
    rows = list(csv.DictReader(io.StringIO(report.comma_separated(HEADER, found))))
    assert len(rows) == 2 * 3 * 2 * 2  # models, contestants, tests, threads
    assert {row["commit"] for row in rows} == {"abc"}
    document = json.loads(report.as_json(HEADER, found, journal.records))
    assert document["records"] == journal.records
    assert {target["met"] for target in document["targets"]} == {True, False, None}
    pytest.importorskip("matplotlib")
    from bench.peers import plot

    plot.plot(tmp_path / "bars.png", HEADER, found)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


class CountingEngine:
    """Counts the positions that it holds, and the tokens that it ever read."""

    description: dict[str, Any] = {}  # noqa: RUF012
    decoded = read = 0

    def reset(self, threads: int, depth: int = 0) -> None:
        self.decoded = min(self.decoded, depth)
        self.prompt(depth - self.decoded)

    def decode(self) -> None:
        self.prompt(1)

    def prompt(self, n: int) -> None:
        self.decoded += n
        self.read += n


def test_decoding_ends_in_time() -> None:
    engine = CountingEngine()
    request = {"test": "decode", "n": 5, "seconds": 60, "warm": 2, "threads": 1}
    request["cpus"] = cpus_for(64)
    assert worker.run(engine, request)["n"] == 5
    assert engine.decoded == 7
    assert worker.run(engine, {**request, "seconds": 0})["n"] == 1
    assert worker.run(engine, {**request, "test": "prompt", "warm": 0})["n"] == 5


def test_decoding_behind_positions_reads_them_once() -> None:
    engine = CountingEngine()
    request = {"n": 5, "seconds": 60, "warm": 0, "threads": 1, "cpus": cpus_for(64)}
    worker.run(engine, {**request, "test": "prompt", "n": 100})
    for depth in (60, 60, 20):  # falling, as variants have them
        assert worker.run(engine, {**request, "test": "decode", "depth": depth})["n"] == 5
        assert engine.decoded == depth + 5
    assert engine.read == 100 + 3 * 5


def test_beginnings_of_a_prompt_are_timed_on_the_way() -> None:
    engine = CountingEngine()
    request = {"test": "prompt", "n": 100, "seconds": 60, "warm": 0, "threads": 1}
    reply = worker.run(engine, {**request, "cpus": cpus_for(64), "stops": [10, 60, 100]})
    assert engine.read == engine.decoded == 100
    assert reply["stops"] == sorted(reply["stops"]) and len(reply["stops"]) == 3
    assert reply["n"] == 100 and reply["elapsed"] == reply["stops"][-1]


def test_rows_go_together_until_the_time_is_over() -> None:
    engine = CountingEngine()
    request = {"test": "rows", "n": 5, "seconds": 0.01, "warm": 0, "threads": 1}
    reply = worker.run(engine, {**request, "cpus": cpus_for(64)})
    assert reply["n"] == engine.read >= 10 and reply["n"] % 5 == 0
    assert engine.decoded == 5 and reply["elapsed"] > 0.01


def test_variants_have_columns_of_their_own(journal: Journal) -> None:
    deep, short = variants.decode_label(4096), variants.prompt_label(4096)
    stops = ((4, "prompt of 4"), (8, short))
    plan = (
        Trial("prompts", "prompt", 8, 2, stops=stops, most_rounds=1),
        Trial(deep, "decode", 4, 2, 8),
    )
    model = variants.SMOLLM2_DEPTH
    names = {variants.INT8_CACHE: 140, **dict(zip(variants.THEIR_CACHES, (20, 35), strict=True))}
    more = [contestant(name, rate) for name, rate in names.items()]
    contestants = (contestant(ONE_PAIR, 100), *more)
    case = Case(model, contestants, 8, threads=(2,), plan=plan, one_by_one=True)
    assert case.cells(2) == [(plan[0], 0), (plan[1], 0), (plan[1], 1)]
    assert run_case(case, journal, ROOT, 2)
    found = {model: Results(model, journal.records)}
    assert not found[model].is_race
    page = report.markdown(HEADER, found)
    assert f"| prompt of 4, 2 thr. | {short}, 2 thr. | {deep}, 2 thr. |" in page
    read = found[model].value(Key(ONE_PAIR, "prompt of 4", 2))
    assert read is not None and read.values == (pytest.approx(200),)
    assert f"| {variants.INT8_CACHE} | {ONE_PAIR} | 1.40 | 1.40 | 1.40 (1.40 to 1.40) |" in page
    lines = {t.what.removeprefix(f"{model}: "): t for t in targets(found) if t.found}
    over = lines[f"{deep}, {variants.INT8_CACHE}, 2 threads: over the better of llama.cpp's caches"]
    assert over.found is not None and over.found.median == pytest.approx(4) and over.met
    assert lines[f"{deep}, {variants.INT8_CACHE}, 2 threads: over float16"].met is True


@pytest.mark.parametrize(
    ("isa", "series", "bounds"),
    [
        ("native avx512 lookup", (ONE_PAIR, AVX2_PAIR), {ONE_PAIR: 2.4, AVX2_PAIR: 2.2}),
        ("native avx2 lookup", (ONE_PAIR,), {ONE_PAIR: 2.2}),
    ],
)
def test_avx2_has_bounds_of_its_own(
    isa: str, series: tuple[str, ...], bounds: dict[str, float]
) -> None:
    model = variants.LLAMA_7B_ROWS
    records: list[dict[str, Any]] = [{"model": model, "name": n, "isa": isa} for n in series]
    records += [
        record(name, 0, speed, model=model, test=variants.rows_label(n), threads=2)
        for name in series
        for n, speed in ((1, 10.0), (4, 23.0))
    ]
    found = [t for t in targets({model: Results(model, records)}) if t.found]
    assert {name: t.bound for t in found for name in series if f"{name}, 2" in t.what} == bounds
    assert [t.met for t in found] == [bound <= 2.3 for bound in bounds.values()]


def test_both_kinds_of_pages_have_a_limit(journal: Journal) -> None:
    contestants = (
        Contestant(READ, contestant(READ, 100_000).command, tests=()),
        contestant(ONE_PAIR, 80),
        contestant(variants.COPIED, 96),
    )
    model = variants.LLAMA_7B_PAGES
    plan = tuple(Trial("decode", "decode", 4, threads) for threads in (1, 2))
    run_case(Case(model, contestants, 8, plan=plan), journal, ROOT, 1)
    for record in journal.records:
        if "limit" in record:
            record["limit_huge"] = 2 * record["limit"]
    found = {model: Results(model, journal.records)}
    share = found[model].share_of_limit(Key(variants.COPIED, "decode", 1), "huge")
    assert share is not None and share.median == pytest.approx(0.48)
    page = report.markdown(HEADER, found)
    assert "| of the limit | of huge pages |" in page
    assert "| edgedb 1 pair, copied | edgedb 1 pair | 1.20 |" in page
    line = next(t for t in targets(found) if t.found)
    assert line.what.endswith("share of a plain read from huge pages") and line.met is False


@pytest.mark.parametrize("model", variants.VARIANTS.values())
def test_every_variant_is_a_case(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_there", lambda path: path)
    monkeypatch.setattr(cases, "write_random", lambda *_: None)
    monkeypatch.setattr(random_models, "write_gguf", lambda *_: None)
    monkeypatch.setattr(variants, "requantized", lambda name, paths: paths.file(name))
    monkeypatch.setattr(cases, "shared_library", lambda source, folder: folder)
    case = variants.variant(model, cases.Paths(ROOT, tmp_path))
    tests = case.tests(0)
    labels = [(label, t.threads) for t in tests for label in t.labels]
    assert tests == case.tests(1) and len(set(labels)) == len(labels)
    cells = case.cells(case.rounds)
    assert len(set(cells)) == len(cells) and {trial for trial, _ in cells} == set(tests)
    assert all(any(t.kind in c.tests for t in tests) or c.name == READ for c in case.contestants)
    for contestant in case.contestants:
        if "--context" in contestant.command:
            room = int(contestant.command[contestant.command.index("--context") + 1])
            assert all(room >= t.depth + t.n for t in tests)


def test_the_reader_reads_both(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    source = ROOT / "bench" / "peers" / "read_probe.c"
    reader = read_worker.Reader(str(cases.shared_library(source, tmp_path)), str(data))
    request = {"threads": 1, "seconds": 0.01, "cpus": cpus_for(64)}
    for pages in cases.PAGES:
        reply = reader.answer({**request, "pages": pages})
        assert reply["n"] > 1 << 20
    assert reader.description["file"].startswith("map")
    assert reader.description["huge"].startswith("copy")


SMALL = ModelConfig("llama", 96, 256, 512, 2, 4, 2, 64, 128)
# Rows that are no multiple of 256, heads of another size than hidden / heads, one table.
ODD = ModelConfig("qwen3", 96, 288, 512, 2, 4, 2, 64, 128, tie_word_embeddings=True)


@pytest.mark.parametrize("layers", ["TQ2_0", "Q2_K", "Q4_0"])
@pytest.mark.parametrize("config", [SMALL, ODD])
def test_random_gguf_files_are_valid(
    config: ModelConfig, layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "small", config)
    monkeypatch.setattr(random_models, "_POOL_BYTES", 1 << 17)
    random_models.write_gguf(tmp_path / "a.gguf", "small", layers)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    more = (3, 9) if config is SMALL else (2, 11)
    assert len(tensors) == more[0] + more[1] * config.n_layers
    head = ("output.weight", "Q6_K") if config is SMALL else ("token_embd.weight", "Q8_0")
    up = layers if config is SMALL else "Q4_0"
    for name, kind in (("blk.1.ffn_down.weight", layers), ("blk.0.ffn_up.weight", up), head):
        assert tensors[name].tensor_type.name == kind
        weight = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        # A matrix that keeps the size of what it multiplies.
        assert 0.2 < weight.std() * config.hidden_size**0.5 < 5, name
    one, two = (tensors[f"blk.{i}.ffn_up.weight"].data for i in range(2))
    assert not np.array_equal(one, two)


def test_a_matrix_larger_than_the_pool_takes_it_again() -> None:
    pool, rng = np.arange(32, dtype=np.uint8), np.random.default_rng(0)
    assert random_models._cut(pool, 80, 4, rng).tolist() == [*range(32), *range(32), *range(16)]
    starts = {random_models._cut(pool, 24, 4, rng)[0] for _ in range(50)}
    assert starts == {0, 4, 8}


def test_every_random_case_has_a_shape() -> None:
    assert {shape for shape, _ in cases._RANDOM.values()} <= SHAPES.keys()
    assert set(cases.GROUPS["small"]) <= cases.MODELS.keys()
