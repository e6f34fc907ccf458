"""Products from set bit to set bit, and the comparison of kernels in turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from edgedb.convert.fdb import fit  # noqa: E402
from edgedb.format.packing import dequantize  # noqa: E402
from edgedb.measure.energy import Meter  # noqa: E402
from edgedb.ops import library  # noqa: E402
from tools.research import cost  # noqa: E402
from tools.research.results import Results  # noqa: E402
from tools.research.skipping import multiply, words  # noqa: E402


@pytest.mark.parametrize("n_planes", [2, 3, 4])
@pytest.mark.parametrize("cols", [1, 63, 64, 65, 200])
def test_skipping_multiplies(n_planes: int, cols: int) -> None:
    rng = np.random.default_rng(cols)
    fitted = fit(rng.normal(size=(7, cols)).astype(np.float32), n_planes)
    tensor, pairs = fitted.tensor, -(-n_planes // 2)
    groups = -(-cols // 64)
    q = np.zeros(groups * 64, np.int64)
    q[:cols] = rng.integers(-127, 128, cols)
    sx = rng.random(groups).astype(np.float32)
    planes, codes = words(tensor)
    assert planes.shape == (pairs, 7, groups, 2) and codes.shape == (pairs, 7, groups, 2)
    y = np.empty(7, np.float32)
    multiply(planes, codes, tensor.row_scale, q, sx, y)
    x = (q * np.repeat(sx, 64))[:cols]
    expected = dequantize(tensor).astype(np.float64) @ x
    assert y == pytest.approx(expected, rel=1e-4, abs=1e-4)


class Steady(Meter):
    def __init__(self) -> None:
        super().__init__([])

    def joules(self) -> float:
        return 0.002


def test_ways_are_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    speed = iter([1.0] * 4 + [1.0, 1.0, 4.0, 4.0] + [1.0] * 4)  # the machine is slower in a round

    def way(name: str, seconds: float) -> cost.Way:
        def read(n: int) -> None:
            clock[0] += n * seconds * next(speed)

        return cost.Way(name, read, read)

    found = cost.measured([way("a", 0.01), way("b", 0.02)], 10, 20, 2, Steady())
    assert found["a"]["decode_ratio"] == 1
    assert found["b"]["decode_ratios"] == pytest.approx([8, 2])
    assert found["a"]["decode_ms"] == pytest.approx(10)
    assert found["b"]["prompt_ms"] == pytest.approx(50)
    assert found["b"]["decode_mj"] == pytest.approx(0.2)
    assert found["a"]["prompt_mj"] == pytest.approx(0.1)


def test_what_is_slow_reads_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, read = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def slow(n: int) -> None:
        read.append(n)
        clock[0] += 0.25 * n

    found = cost.measured([cost.Way("slow", slow, None)], 8, 16, 2, None)
    assert read == [1, 4, 4] and found["slow"]["decode_ms"] == pytest.approx(250)
    assert found["slow"]["prompt_ms"] is found["slow"]["decode_mj"] is None


def test_a_model_is_measured_on_every_kernel(tiny_model: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    for _ in range(2):  # the second finds all of it
        cost.run(tiny_model, results, 2, 3, 1)
    operations, times = results.read()
    assert operations["kind"] == "operations" and operations["ratio"] > 1
    expected = {
        f"{isa} {kernel}"
        for isa, _, runs in library.instruction_sets()
        if runs
        for kernel in library.kernels(isa)
    }
    assert set(times["ways"]) == expected | {"float32", "skipping"}
    assert all(way["decode_ms"] > 0 for way in times["ways"].values())
    assert times["machine"]["commit"] and times["energy"]
