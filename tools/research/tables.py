"""Records of ``docs/research.md`` as tables in Markdown, one for each question.

A figure is the mean over seeds, and behind ± the standard deviation of a sample; ``n`` is how many
there are, where they are fewer than elsewhere in the table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from .jobs import COMPARED_STARTS, GAMMA, NEAREST, RATE_SEED, Size, tokens_of
from .results import Record, by, spread
from .teachers import FAMILIES

TEXTS = ("book", "wiki", "sampled")
Rows = list[Sequence[str]]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; nothing at all without rows."""
    found = list(rows)
    if not found:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join([f"**{title}**", "", *lines])


def texts(record: Record) -> list[str]:
    """The texts that a record was measured on, in the pages' order."""
    known = [name for name in TEXTS if name in record["quality"]]
    return known + sorted(set(record["quality"]) - set(known))


def ratio(record: Record) -> float:
    """The student's perplexity over its teacher's, the geometric mean over texts."""
    logs = [math.log(of["ppl"] / of["teacher_ppl"]) for of in record["quality"].values()]
    return math.exp(statistics.fmean(logs))


def kl(record: Record) -> float:
    """The mean over texts."""
    return statistics.fmean(of["kl"] for of in record["quality"].values())


def loss_of(gamma: float | None) -> str:
    return "KL" if gamma is None else f"DAD, gamma {gamma:g}"


def paired(records: Sequence[Record], of: Callable[[Record], float]) -> str:
    """The mean share by which DAD is above KL (below, if negative), seed by seed."""
    found = {(r["gamma"], r["seed"]): of(r) for r in records}
    seeds = [seed for gamma, seed in found if gamma == GAMMA and (None, seed) in found]
    shares = [100 * (found[GAMMA, seed] / found[None, seed] - 1) for seed in seeds]
    if not shares:
        return ""
    error = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.fmean(shares):+.1f}%{error}"


def trainings(records: Iterable[Record], **fields: object) -> list[Record]:
    """Trained students with those fields, trials of rates left out."""
    return [
        r for r in records
        if r["kind"] == "training" and all(r[name] == value for name, value in fields.items())
    ]  # fmt: skip


def teachers(records: Sequence[Record]) -> str:
    """Their perplexities."""
    rows: Rows = []
    for record in records:
        if record["kind"] == "teacher":
            quality = record["quality"]
            cells = [f"{quality[text]['ppl']:.1f}" for text in texts(record)]
            tokens = f"{record['tokens'] / 1e6:.1f}M"
            rows.append([record["family"], tokens, *cells])
            head = ["teacher", "tokens", *(f"perplexity, {text}" for text in texts(record))]
    return table("Teachers", head, rows) if rows else ""


def trials(records: Sequence[Record]) -> str:
    """The rates that were tried."""
    rows = [
        [f"{r['rate']:g}", f"{kl(r):.4f}", f"{ratio(r):.3f}"]
        for r in records
        if r["kind"] == "trial"
    ]
    return table("Rates of latents", ["rate", "KL", "perplexity over the teacher's"], rows)


def architectures(records: Sequence[Record]) -> str:
    """Question 1."""
    rows: Rows = []
    for family in FAMILIES:
        of = [r for r in records if r.get("family") == family and r.get("student") == "fdb"]
        untrained = {r["start"]: r for r in of if r["kind"] == "start"}
        trained = trainings(of, start="weighted", steps=Size().usual)
        if not trained and not untrained:
            continue
        cells = [family]
        for start in (NEAREST, "weighted"):
            cells.append(f"{ratio(untrained[start]):.3f}" if start in untrained else "")
        for gamma in (None, GAMMA):
            cells.append(spread((ratio(r) for r in trained if r["gamma"] == gamma), 4))
        rows.append([*cells, paired(trained, kl)])
    head = ["family", "rounded to nearest", "FDB, start", "FDB + KL", "FDB + DAD"]
    head.append("KL to the teacher: DAD against KL")
    return table("1. Perplexity over the teacher's", head, rows)


def vision(records: Sequence[Record]) -> str:
    """Question 2."""
    rows: Rows = []
    found = [r for r in records if r["kind"] == "vision"]
    for (net,), of_net in by(found, "net"):
        for (grid,), of in by(of_net, "grid"):
            cells = [str(net), str(grid)]
            for loss in ("", "start", "kl", "dad"):
                part = [r for r in of if r["loss"] == loss]
                cells.append(spread((100 * r["accuracy"] for r in part), 3))
                if loss in ("kl", "dad"):
                    cells.append(spread((r["kl"] for r in part), 2))
            rows.append(cells)
    head = ["net", "levels", "full precision, %", "start, %", "KL, %", "its KL", "DAD, %", "its KL"]
    return table("2. Accuracy on test images, and KL to the teacher", head, rows)


def elsewhere(records: Sequence[Record]) -> str:
    """Question 3."""
    rows: Rows = []
    for student in ("ternary", "fdb", "three planes", "mixed"):
        of = trainings(
            records, student=student, family="llama", start="weighted", steps=Size().usual
        )
        if not of:
            continue
        cells = [student]
        for gamma in (None, GAMMA):
            cells.append(spread((kl(r) for r in of if r["gamma"] == gamma), 3))
        for gamma in (None, GAMMA):
            cells.append(spread((ratio(r) for r in of if r["gamma"] == gamma), 4))
        rows.append([*cells, paired(of, kl), paired(of, ratio)])
    head = ["student", "KL: by KL", "by DAD", "perplexity over the teacher's: by KL", "by DAD"]
    return table("3. DAD elsewhere", [*head, "DAD's KL", "DAD's ratio"], rows)


def starts(records: Sequence[Record]) -> str:
    """Question 4."""
    size, rows = Size(), list[Sequence[str]]()
    of = [r for r in records if r.get("family") == "llama" and r.get("student") == "fdb"]
    for start in COMPARED_STARTS:
        first = [r for r in of if r["kind"] == "start" and r["start"] == start]
        if not first:
            continue
        cells = [start, f"{kl(first[0]):.3f}"]
        for steps in size.steps:
            done = trainings(of, start=start, steps=steps, gamma=None)
            cells.append(spread((kl(r) for r in done), 3))
        rows.append(cells)
    head = ["start", "KL at the start", *(f"after {tokens_of(size, n)}" for n in size.steps)]
    return table("4. Starts", head, rows)


def gammas(records: Sequence[Record]) -> str:
    """Question 5, what a gamma moves."""
    rows: Rows = []
    of = trainings(records, student="fdb", family="llama", start="weighted", steps=Size().usual)
    for gamma in sorted({r["gamma"] for r in of}, key=lambda g: -1 if g is None else g):
        part = [r for r in of if r["gamma"] == gamma]
        every = [list(r["quality"].values()) for r in part]

        def mean(value: Callable[[Record], float], of: list[list[Record]] = every) -> str:
            return spread((statistics.fmean(value(q) for q in qs) for qs in of), 3)

        rows.append([
            loss_of(gamma),
            mean(lambda q: q["kl"]),
            mean(lambda q: q["by_entropy"][0]["kl"]),
            mean(lambda q: q["by_entropy"][-1]["kl"]),
            mean(lambda q: q["top1"]),
            mean(lambda q: q["entropy"] - q["teacher_entropy"]),
            mean(lambda q: 100 * (q["mass"][0] / q["teacher_mass"][0] - 1)),
            mean(lambda q: 100 * (q["mass"][-1] / q["teacher_mass"][-1] - 1)),
        ])  # fmt: skip
    head = ["loss", "KL", "KL, surest tenth", "KL, least sure tenth", "top-1", "entropy added",
            "mass of the most frequent tenth, %", "of the rarest, %"]  # fmt: skip
    return table("5. What gamma moves", head, rows)


def foretold(records: Sequence[Record]) -> str:
    """Question 5, which entropy foretells an error."""
    rows: Rows = []
    for record in records:
        if record["kind"] == "entropy":
            rows += _foretold(record["model"], [record])
    usual = {"student": "fdb", "family": "llama", "start": "weighted", "steps": Size().usual}
    rows += _foretold("Llama, 20M, KL", trainings(records, gamma=None, **usual))
    head = ["student", "text", "KL", "by the teacher's entropy", "by the student's",
            "by both, gamma 0.5", "added loss by the teacher's", "by the student's"]  # fmt: skip
    return table("5. Rank correlation of a token's error", head, rows)


def _foretold(name: str, of: Sequence[Record]) -> Rows:
    keys = ("teacher_entropy", "student_entropy", "twin_0.5",
            "added_by_teacher_entropy", "added_by_student_entropy")  # fmt: skip
    rows: Rows = []
    for text in texts(of[0]) if of else ():
        parts = [r["quality"][text] for r in of]
        cells = [spread((q["foretold"][key] for q in parts), 3) for key in keys]
        rows.append([name, text, spread((q["kl"] for q in parts), 3), *cells])
    return rows


def masses(records: Sequence[Record]) -> str:
    """Question 5, mass by frequency."""
    rows: Rows = []
    for record in records:
        if record["kind"] != "entropy":
            continue
        for text in texts(record):
            of = record["quality"][text]
            pairs = zip(of["mass"], of["teacher_mass"], strict=True)
            changes = [100 * (mine / theirs - 1) for mine, theirs in pairs]
            rows.append([record["model"], text, *(f"{change:+.1f}" for change in changes)])
    head = ["student", "text", *(f"{i + 1}" for i in range(10))]
    return table("5. Mass against the teacher's by tenths of frequency, %", head, rows)


def costs(records: Sequence[Record]) -> str:
    """Question 6."""
    parts = []
    for record in records:
        if record["kind"] == "operations":
            zeros = f"{record['zeros_b1']:.1%} and {record['zeros_b2']:.1%}"
            row = [record["model"], f"{record['dense'] / 1e9:.2f}", f"{record['planes'] / 1e9:.2f}",
                   f"{record['ratio']:.2f}", zeros, f"{record['zero_weights']:.1%}"]  # fmt: skip
            head = ["model", "GFLOP", "with planes", "ratio", "zeros of b1, b2", "zero weights"]
            title = f"6. Operations of {record['tokens']} tokens"
            parts.append(table(title, head, [row]))
        if record["kind"] == "time":
            parts.append(_times(record))
    return "\n\n".join(parts)


def _times(record: Record) -> str:
    def cell(value: float | None, decimals: int) -> str:
        return "" if value is None else f"{value:.{decimals}f}"

    rows = [
        [
            name,
            cell(of["decode_ms"], 3),
            cell(of["decode_ratio"], 2),
            cell(of["prompt_ms"], 3),
            cell(of["prompt_ratio"], 2),
            cell(of["decode_mj"], 1),
            cell(of["prompt_mj"], 1),
        ]
        for name, of in record["ways"].items()
    ]
    head = ["kernel", "decode, ms a token", "ratio", "prompt, ms a token", "ratio",
            "decode, mJ", "prompt, mJ"]  # fmt: skip
    machine = record["machine"]
    title = f"6. Time of {record['model']}, {machine['cpu']}, one thread, {machine['commit']}"
    return table(title, head, rows) + f"\n\nEnergy: {record['energy']}."


TABLES = (
    teachers, trials, architectures, vision, elsewhere, starts, foretold, gammas, masses, costs,
)  # fmt: skip


def all_tables(records: Sequence[Record]) -> str:
    """Every table that there are records for."""
    kept = [r for r in records if r.get("seed") != RATE_SEED or r["kind"] == "trial"]
    return "\n\n".join(filter(None, (make(kept) for make in TABLES)))
