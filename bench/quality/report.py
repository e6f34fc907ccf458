"""What is there, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers.cases import peer
from bench.peers.results import Results, Spread

from . import llama_cpp, ours, speed, zeroshot
from .rows import Row

DEFAULT_MODEL, TEACHER = "default", "teacher, int8"
TARGETS = {2.3: 0.95, 2.9: 0.50, 3.4: 0.25, 4.5: 0.060}  # mean KL, by bits of the layers
SPEED_TARGET, ZERO_SHOT_TARGET = 1.8, 0.97


@dataclass(frozen=True)
class Found:
    """Everything that was measured: the newest row of each thing, and the races."""

    header: Mapping[str, Any]
    rows: Sequence[Row]
    races: Mapping[str, Results]

    def of(self, kind: str) -> list[Row]:
        """Rows of a kind, the newest of each name."""
        newest: dict[Any, Row] = {}
        for row in self.rows:
            if row["kind"] == kind:
                newest[row["name"], row.get("padded")] = row
        return list(newest.values())

    @property
    def fair(self) -> list[Row]:
        """Ours and llama.cpp's on the fair teacher, by bits."""
        theirs = {(row["name"], row["padded"]): row for row in self.of(llama_cpp.KIND)}
        peers = [theirs[key] for key in llama_cpp.FAIR if key in theirs]
        return sorted([*self.of(ours.KIND), *peers], key=lambda row: row["layer_bits"])

    def decode(self, row: Row) -> Spread | None:
        """Tokens a second of a fair row, in the wide shape."""
        race = self.races.get(speed.WIDE)
        name = row["name"] if row["kind"] == ours.KIND else peer(row["name"])
        return speed.best(race, name) if race else None


def markdown(found: Found) -> str:
    """The whole page."""
    h = found.header
    lines = [
        "# Quality and speed against llama.cpp",
        "",
        f"{h['cpu']}, {h['cores']} cores, {h['system']}; edgedb commit {h['commit']}; "
        f"{h['peers']}. `{h['command']}`, {h['date']}.",
        "",
        "SmolLM2-135M-Instruct with continuous weights; WikiText-2 test text, ten windows of 2,048",
        "tokens, second half of each (`llama-perplexity -c 2048 --chunks 10`), against one file of",
        "the teacher's predictions. Calibration: one text for both. ours in bold.",
    ]
    lines += ["", "## On one teacher", "", *fair_table(found)]
    if models := found.of(ours.MODEL):
        lines += ["", "## Finished models against theirs", "", *_models(models)]
    if rows := [row for row in found.of(llama_cpp.KIND) if not row["padded"]]:
        lines += ["", "## llama.cpp's formats on rows of 576", "", *_real(found, rows)]
    if lines_of_speed := _speed(found):
        lines += ["", "## Decode of the default model", "", *lines_of_speed]
    if table := zero_shot_table(found.rows):
        lines += ["", "## Zero-shot", "", *table]
    return "\n".join(lines) + "\n"


def as_json(found: Found) -> str:
    """Rows and, of every race, medians with their lowest and highest round."""
    races = [
        {"model": name, "name": key.name, "threads": key.threads, **_spread(race.value(key))}
        for name, race in found.races.items()
        for key in race.keys
    ]
    rows = [row for kind in _KINDS for row in found.of(kind)]
    scores = {
        name: {task: {"right": s.right, "n": s.n} for task, s in tasks.items()}
        for name, tasks in zeroshot.scores(found.rows).items()
    }
    document = {**found.header, "rows": rows, "decode": races, "zero_shot": scores}
    return json.dumps(document, indent=1) + "\n"


_KINDS = (llama_cpp.KIND, ours.KIND, ours.MODEL)


def fair_table(found: Found) -> list[str]:
    """Every row on the fair teacher, by bits."""
    head = ("", "bits of the layers", "mean KL", "99.9% KL", "same top-1",
            "perplexity over the teacher's", "decode, tokens a second")  # fmt: skip
    cells = []
    for row in found.fair:
        mine = row["kind"] == ours.KIND
        name = "**edgedb**" if mine else f"llama.cpp {row['name']}"
        kl = f"**{row['kl']:.3f}**{_verdict(row)}" if mine else f"{row['kl']:.3f}"
        cells.append(
            (name, f"{row['layer_bits']:.2f}", kl, *_others(row), _rate(found.decode(row)))
        )
    return _table(head, cells)


def _verdict(row: Row) -> str:
    bound = TARGETS.get(row["bits"])
    return "" if bound is None else f" (target {bound:g})"


def _others(row: Row) -> tuple[str, str, str]:
    ratio = row["perplexity"] / row["base_perplexity"]
    return f"{row['kl_999']:.2f}", f"{row['same_top']:.1%}", f"{ratio:.3f}"


def _models(rows: Sequence[Row]) -> list[str]:
    head = ("model", "bits of the layers", "mean KL", "99.9% KL", "same top-1",
            "perplexity over the teacher's")  # fmt: skip
    return _table(
        head,
        [(r["name"], f"{r['layer_bits']:.2f}", f"{r['kl']:.3f}", *_others(r)) for r in rows],
    )


def _real(found: Found, rows: Sequence[Row]) -> list[str]:
    race = found.races.get(speed.SMOLLM2)
    head = ("format", "bits of the layers", "mean KL", "same top-1", "decode, tokens a second")
    cells = []
    for row in sorted(rows, key=lambda row: row["kl"]):
        rate = speed.best(race, peer(row["name"])) if race else None
        bits, kl, same = f"{row['layer_bits']:.2f}", f"{row['kl']:.4f}", f"{row['same_top']:.1%}"
        cells.append((row["name"], bits, kl, same, _rate(rate)))
    return _table(head, cells)


def _speed(found: Found) -> list[str]:
    race = found.races.get(speed.SMOLLM2)
    default = [row for row in found.of(ours.MODEL) if row["name"] == DEFAULT_MODEL]
    if race is None or not default:
        return []
    limit = default[0]["kl"]
    theirs = speed.qualified(found.rows, limit)
    cells = []
    for name in (speed.DEFAULT, speed.DEFAULT_AVX2):
        for threads in (*((n,) for n in speed.THREADS), speed.THREADS):
            pair = speed.against_the_best(race, name, theirs, threads)
            if pair is None:
                continue
            a, b, ratio = pair
            measured = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            mine, other = _rate(race.value(a)), _rate(race.value(b))
            cells.append((name, " or ".join(map(str, threads)), mine, b.name, other, measured))
    head = ("", "threads", "tokens a second", f"fastest of at most KL {limit:.3f}",
            "tokens a second", f"ratio (target {SPEED_TARGET:g})")  # fmt: skip
    return _table(head, cells) if cells else []


def zero_shot_table(rows: Sequence[Row]) -> list[str]:
    """Shares of right answers, and the mean as a share of the teacher's."""
    scores = zeroshot.scores(rows)
    if not scores:
        return []
    counts = next(iter(scores.values()))
    head = ("", *(f"{task} ({counts[task].n:,})" for task in zeroshot.TASKS), "mean", "share")
    means = {
        name: sum(score.share for score in tasks.values()) / len(tasks)
        for name, tasks in scores.items()
    }
    cells = [
        (
            name,
            *(f"{100 * tasks[task].share:.1f} ± {100 * tasks[task].standard_error:.1f}"
              for task in zeroshot.TASKS),
            f"{100 * means[name]:.2f}",
            f"{means[name] / means[TEACHER]:.1%}" if TEACHER in means else "",
        )
        for name, tasks in scores.items()
    ]  # fmt: skip
    return _table(head, cells)


def _rate(spread: Spread | None) -> str:
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})" if spread else ""


def _spread(spread: Spread | None) -> dict[str, float]:
    if spread is None:
        return {}
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
