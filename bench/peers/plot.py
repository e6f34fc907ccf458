"""A run's medians, with the lowest and highest round, as PNG: bars of races, and lines where a test
was made at several depths of a context or with several rows at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .report import TESTS
from .results import Key, Results

OURS, THEIRS = ("#1b7f5c", "#6fc3a4"), ("#8a8f98", "#c3c7ce")  # 1 thread, 2 threads
STYLES = ("-", "--", ":")
# Tests of one kind, by the number in their names, and what that number is.
SERIES = {
    r"decode at ([\d,]+)": "decode, behind so many positions",
    r"([\d,]+) rows?": "rows at once",
}


def plot(path: Path, header: Mapping[str, Any], results: Mapping[str, Results]) -> None:
    """Two axes a row, tokens a second: decode and prompt of each race, then lines. Nothing to draw:
    no file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    races = [r for r in results.values() if r.is_race and any(k.test == "prompt" for k in r.keys)]
    lines = [(r, pattern) for r in results.values() for pattern in SERIES if _points(r, pattern)]
    rows = len(races) + (len(lines) + 1) // 2
    if not rows:
        return
    figure, grid = pyplot.subplots(rows, len(TESTS), figsize=(11, 0.6 + 3.1 * rows), squeeze=False)
    for row, result in zip(grid, races, strict=False):
        for axes, test in zip(row, TESTS, strict=True):
            _bars(axes, result, test)
    places: Iterator[Any] = iter(grid[len(races) :].flat)
    for (result, pattern), axes in zip(lines, places, strict=False):
        _lines(axes, result, pattern)
    for axes in places:
        axes.axis("off")
    figure.suptitle(f"tokens a second; {header['cpu']}, {header['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _points(result: Results, pattern: str) -> list[tuple[int, str]]:
    """Tests of a kind by their number, if there are several."""
    tests = {key.test for key in result.keys}
    found = [(m[1], test) for test in tests if (m := re.fullmatch(pattern, test))]
    return sorted((int(n.replace(",", "")), test) for n, test in found) if len(found) > 1 else []


def _lines(axes: Any, result: Results, pattern: str) -> None:
    points, threads = _points(result, pattern), max(result.threads)
    seen = {True: 0, False: 0}
    for name in result.names:
        values = [(n, result.value(Key(name, test, threads))) for n, test in points]
        known = [(n, value) for n, value in values if value is not None]
        if not known:
            continue
        ours = name.startswith("edgedb")
        spread = [
            [value.median - value.low for _, value in known],
            [value.high - value.median for _, value in known],
        ]
        axes.errorbar(
            [n for n, _ in known],
            [value.median for _, value in known],
            yerr=spread,
            label=name,
            color=(OURS if ours else THEIRS)[0],
            linestyle=STYLES[seen[ours] % len(STYLES)],
            marker="o",
            markersize=3,
            elinewidth=0.6,
        )
        seen[ours] += 1
    axes.set_xscale("log", base=2)
    axes.set_xticks([n for n, _ in points], [f"{n:,}" for n, _ in points])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    axes.set_title(
        f"{result.model.partition(',')[0]}, {SERIES[pattern]}, {threads} threads", fontsize=8
    )


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
