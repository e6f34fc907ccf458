"""What is there, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers.cases import peer
from bench.peers.results import Results, Spread
from edgedb.errors import EdgeDBError

from . import llama_cpp, ours, speed, zeroshot
from .rows import Row

DEFAULT_MODEL, TEACHER = "default", "teacher, int8"
TARGETS = {2.3: 0.95, 2.9: 0.50, 3.4: 0.25, 4.5: 0.060}  # mean KL, by bits of the layers
SPEED_TARGET = 1.8
# Marks of a page's place for the tables.
BEGIN, END = "<!-- make bench-quality -->", "<!-- end -->"


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
    lines = ["# Quality and speed against llama.cpp", "", *_header(found)]
    for title, table in _sections(found):
        lines += ["", f"## {title}", "", *table]
    return "\n".join(lines) + "\n"


def in_page(page: str, found: Found, picture: str | None) -> str:
    """A page of the docs with what stands between its two marks made anew: the tables, and a link
    to the picture if there is one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise EdgeDBError(f"the page has no place for tables: {BEGIN} ... {END}")
    lines = [line for title, table in _sections(found) for line in (f"**{title}**", "", *table, "")]
    if picture:
        lines += [f"![KL against decode speed]({picture})", ""]
    return "\n".join([before + begin, *lines, *_header(found), end + after])


def _header(found: Found) -> list[str]:
    h, at = found.header, found.header["decode_at"]
    speed_at = f", decode at {at['commit']}" if at else ""
    commits = {row["commit"]: None for kind in (ours.KIND, ours.MODEL) for row in found.of(kind)}
    measured_at = ", ".join(commits) or h["commit"]
    return [
        f"{h['cpu']}, {h['cores']} cores, {h['system']}; edgedb at commit {measured_at}{speed_at}; "
        f"{h['peers']}. `{h['command']}`, {h['date']}."
    ]


def _sections(found: Found) -> Iterator[tuple[str, list[str]]]:
    """Titles and tables of what was measured."""
    if found.fair:
        yield "Both quantizers on one teacher", [*fair_table(found), *_missing(found)]
    if models := found.of(ours.MODEL):
        yield "Finished models against their own teacher", _models(models)
    if rows := [row for row in found.of(llama_cpp.KIND) if not row["padded"]]:
        yield "llama.cpp's formats on SmolLM2's own rows of 576", _real(found, rows)
    if table := _speed(found):
        yield "Decode of the default model", table
    if table := zero_shot_table(found.rows):
        yield "Zero-shot, percent right", table


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


def _missing(found: Found) -> list[str]:
    """What a run that was cut short has left out."""
    there = {row["name"] for row in found.fair}
    names = [f"edgedb {bits:g}" for bits in ours.LAYER_BITS] + [n for n, _ in llama_cpp.FAIR]
    left = ", ".join(name for name in names if name not in there)
    return ["", f"Not measured yet: {left}."] if left else []


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
    head = (
        "",
        *(f"{task} ({counts[task].n:,})" for task in zeroshot.TASKS),
        "mean",
        "share of the teacher's",
    )
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
