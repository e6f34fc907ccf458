"""``python -m bench.quality.picture``: the README's picture, speed against quality, of what was
recorded. Nothing is measured, and the same record gives the same file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.peers.cases import peer
from bench.peers.plot import OURS, THEIRS

from . import llama_cpp, ours, speed
from .report import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "bench" / "results" / "quality-amd-epyc-family-26-model-2.json"
PICTURE = ROOT / "docs" / "img" / "speed-quality.svg"

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 52  # margins around the axes
_CHAR, _LINE = 6.4, 13.0  # about how large a character of a label is


@dataclass(frozen=True)
class Point:
    """``speed``: tokens a second, with the lowest and highest round; ``kl`` from the full model."""

    name: str
    mine: bool
    speed: tuple[float, float, float]
    kl: float


def points(record: Mapping[str, Any]) -> list[Point]:
    """Both engines in one shape where that was raced, else the default model among what a person
    has of llama.cpp for the same model."""
    found = list(_wide(record))
    if not any(point.mine for point in found):
        found = list(_real(record))
    return sorted(found, key=lambda point: (not point.mine, point.name))


def _wide(record: Mapping[str, Any]) -> Iterator[Point]:
    for row in record["rows"]:
        mine = row["kind"] == ours.KIND
        if mine or (
            row["kind"] == llama_cpp.KIND and (row["name"], row["padded"]) in llama_cpp.FAIR
        ):
            name = row["name"] if mine else peer(row["name"])
            label = f"edgedb, {row['layer_bits']:.1f} bits" if mine else row["name"]
            yield from _raced(record, speed.WIDE, name, label, mine, row["kl"])


def _real(record: Mapping[str, Any]) -> Iterator[Point]:
    for row in record["rows"]:
        if row["kind"] == ours.MODEL and row["name"] == DEFAULT_MODEL:
            label = f"edgedb, {row['layer_bits']:.1f} bits, trained"
            yield from _raced(record, speed.SMOLLM2, speed.DEFAULT, label, True, row["kl"])
        elif row["kind"] == llama_cpp.KIND and not row["padded"]:
            yield from _raced(
                record, speed.SMOLLM2, peer(row["name"]), row["name"], False, row["kl"]
            )


def _raced(
    record: Mapping[str, Any], model: str, name: str, label: str, mine: bool, kl: float
) -> Iterator[Point]:
    """The point of a contestant, with the number of threads that is faster; none without a race."""
    rates = [
        (rate["median"], rate["low"], rate["high"])
        for rate in record["decode"]
        if (rate["model"], rate["name"]) == (model, name)
    ]
    if rates:
        yield Point(label, mine, max(rates), kl)


def draw(record: Mapping[str, Any]) -> str:
    """The picture as SVG."""
    found = points(record)
    most = 100 * math.ceil(max(point.speed[2] for point in found) / 100)
    kls = [point.kl for point in found]
    low, high = (math.floor(math.log10(min(kls))), math.ceil(math.log10(max(kls))))

    def x(rate: float) -> float:
        return LEFT + rate / most * (WIDTH - LEFT - RIGHT)

    def y(kl: float) -> float:
        return TOP + (high - math.log10(kl)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [*_axes(x, y, most, range(low, high + 1)), *_marks(found, x, y), *_titles(record)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img" '
        'aria-label="Speed against quality of SmolLM2-135M: edgedb and llama.cpp">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _axes(x: Any, y: Any, most: int, decades: Sequence[int]) -> Iterator[str]:
    for rate in range(0, most + 1, 100):
        yield _line(x(rate), TOP, x(rate), HEIGHT - BOTTOM)
        yield _text(x(rate), HEIGHT - BOTTOM + 17, str(rate), "middle")
    for decade in decades:
        yield _line(LEFT, y(10**decade), WIDTH - RIGHT, y(10**decade))
        yield _text(LEFT - 7, y(10**decade) + 4, f"{10**decade:g}", "end")


def _marks(found: Sequence[Point], x: Any, y: Any) -> Iterator[str]:
    placed = [(x(p.speed[0]) - 5, y(p.kl) - 5, x(p.speed[0]) + 5, y(p.kl) + 5) for p in found]
    for point in found:
        color = OURS[0] if point.mine else THEIRS[0]
        at, (median, least, top) = y(point.kl), point.speed
        yield _line(x(least), at, x(top), at, color)
        yield f'<circle cx="{x(median):.1f}" cy="{at:.1f}" r="5" fill="{color}"/>'
        width = _CHAR * len(point.name)
        corners = (
            (x(median) + 8, at - 6),
            (x(median) - 8 - width, at - 6),
            (x(median) + 8, at + 16),
            (x(median) - 8 - width, at + 16),
        )
        boxes = [(left, base - _LINE, left + width, base) for left, base in corners]
        free = (b for b in boxes if b[2] < WIDTH and not any(_meet(b, other) for other in placed))
        box = next(free, boxes[1])
        placed.append(box)
        yield _text(box[0], box[3], point.name, "start", color)


def _titles(record: Mapping[str, Any]) -> Iterator[str]:
    at = record["decode_at"]
    yield _text(LEFT, 22, "SmolLM2-135M on two cores", "start", "#222222")
    yield _text(WIDTH - RIGHT - 90, 22, "edgedb", "end", OURS[0])
    yield _text(WIDTH - RIGHT, 22, "llama.cpp", "end", THEIRS[0])
    yield _text(
        (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - 18,
        "tokens a second: the more to the right, the faster",
        "middle",
    )
    yield _text(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, f"{at['cpu']}, edgedb {at['commit']}", "middle"
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text x="14" y="{middle:g}" text-anchor="middle" fill="#555555" '
        f'transform="rotate(-90 14 {middle:g})">distance from the full model (KL): '
        "lower is nearer</text>"
    )


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#dddddd") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#555555") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def write(record: Path = RECORD, picture: Path = PICTURE) -> None:
    """Draw ``picture`` of what ``record`` says."""
    document = json.loads(record.read_text(encoding="utf-8"))
    picture.write_text(draw(document), encoding="utf-8")


@click.command()
@click.argument("record", type=click.Path(path_type=Path, exists=True), default=RECORD)
@click.option("--output", type=click.Path(path_type=Path), default=PICTURE)
def main(record: Path, output: Path) -> None:
    """Draw the README's picture of what make bench-quality has recorded."""
    write(record, output)


if __name__ == "__main__":
    main()
