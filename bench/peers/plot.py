"""Bars of a run's medians, with the lowest and highest round, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .report import TESTS
from .results import Key, Results

OURS, THEIRS = ("#1b7f5c", "#6fc3a4"), ("#8a8f98", "#c3c7ce")  # 1 thread, 2 threads


def plot(path: Path, header: Mapping[str, Any], results: Mapping[str, Results]) -> None:
    """A row of axes a model: decode and prompt, tokens a second. Nothing to draw: no file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [result for result in results.values() if result.is_race]
    if not found:
        return
    size = (11, 0.6 + 3.1 * len(found))
    figure, grid = pyplot.subplots(len(found), len(TESTS), figsize=size, squeeze=False)
    for row, result in zip(grid, found, strict=True):
        for axes, test in zip(row, TESTS, strict=True):
            _bars(axes, result, test)
    figure.suptitle(f"tokens a second; {header['cpu']}, {header['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: Any, result: Results, test: str) -> None:
    names = [n for n in result.names if any(k.test == test for k in result.keys if k.name == n)]
    height = 0.8 / len(result.threads)
    for i, threads in enumerate(result.threads):
        for at, name in enumerate(names):
            value = result.value(Key(name, test, threads))
            if value is None:
                continue
            ours = name.startswith("edgedb")
            spread = [[value.median - value.low], [value.high - value.median]]
            axes.barh(
                at + (i - (len(result.threads) - 1) / 2) * height,
                value.median,
                height,
                xerr=spread,
                color=(OURS if ours else THEIRS)[min(i, 1)],
                error_kw={"lw": 0.6},
            )
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    counts = " and ".join(str(threads) for threads in result.threads)
    axes.set_title(f"{result.model}, {test}, {counts} threads", fontsize=8)
