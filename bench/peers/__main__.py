"""``python -m bench.peers``: see ``--help``."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click

from edgedb.cli.options import OneLineErrors
from edgedb.measure.benchmark import Machine

from . import cases, plot, report, variants
from .cases import MODELS, SMOLLM2_FILES, Case, Paths, case
from .commit import commit_of
from .extras import run_extras
from .results import Results
from .runner import QUIET, Journal, run_case
from .targets import EXTRAS
from .variants import VARIANTS, variant

GROUPS = {**cases.GROUPS, **variants.GROUPS}
ALL = {**MODELS, **VARIANTS}
ROOT = Path(__file__).resolve().parents[2]


class _Command(OneLineErrors):
    prefix = "bench-peers"


@click.command(cls=_Command)
@click.option(
    "--models",
    default="smollm2,1.1b,7b,other",
    show_default=True,
    help="What to measure: names of models; `small`: the shapes of 0.6B to 4B; `depth`: long "
    "contexts; `batch`: rows at once; `pages`: weights in both kinds of pages; `other`: the first "
    "token, a busy core, an idle chat, numba's start.",
)
@click.option("--rounds", type=int, help="Rounds of each model.  [default: 10, 7, 5, 5]")
@click.option("--minutes", type=float, help="Begin nothing that would end later than this.")
@click.option("--quick", is_flag=True, help="Two short rounds, kept apart from a real run.")
@click.option("--fresh", is_flag=True, help="Forget the rounds of an earlier, interrupted run.")
@click.option("--prepare", is_flag=True, help="Only make the model files.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Reports without their extension.  [default: bench/results/peers-CPU]",
)
def main(
    models: str,
    rounds: int | None,
    minutes: float | None,
    quick: bool,
    fresh: bool,
    prepare: bool,
    output: Path | None,
) -> None:
    """Measure edgedb and llama.cpp in turns and write one report.

    Run again after an interruption, or with other models: what was already measured at this commit
    is kept.
    """
    paths = Paths(ROOT, ROOT / ".cache" / "peers")
    named = [name.strip() for name in models.split(",")]
    wanted = [model for name in named for model in GROUPS.get(name, (name,))]
    if unknown := set(wanted) - {*ALL, EXTRAS}:
        known = ", ".join([*ALL, *GROUPS, EXTRAS])
        raise click.UsageError(f"unknown: {', '.join(unknown)}; choose of {known}")
    # The models in the report's order, whatever order they are given in.
    chosen_cases = {
        name: _sized((case if name in MODELS else variant)(model, paths), quick, rounds)
        for name, model in ALL.items()
        if name in wanted or (name == "smollm2" and EXTRAS in wanted)
    }
    if prepare:
        return
    machine = Machine.here()
    commit = commit_of(ROOT, "edgedb", "native", "bench/peers")
    key = {"cpu": machine.cpu, "cores": machine.cores, "commit": commit, "quick": quick}
    stem = re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-") + "-quick" * quick
    journal = Journal(paths.peers / f"run-{stem}.jsonl", key, fresh=fresh)
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    complete = True
    for name, chosen in chosen_cases.items():
        if name in wanted:
            complete &= run_case(
                chosen, journal, ROOT, chosen.rounds, deadline=deadline, progress=_say
            )
    if EXTRAS in wanted:
        files = (ROOT / "models" / SMOLLM2_FILES[1], ROOT / "models" / SMOLLM2_FILES[2])
        count = rounds or (1 if quick else 5)
        complete &= run_extras(
            chosen_cases["smollm2"], files, journal, ROOT, count, deadline=deadline, progress=_say
        )
    results = {name: Results(name, journal.records) for name in [*ALL.values(), EXTRAS]}
    found = {name: result for name, result in results.items() if result.names}
    measured = [record["others"] for record in journal.records if "others" in record]
    header = {
        **key,
        "system": machine.system,
        "python": platform.python_version(),
        "peers": _peers(found),
        "command": "make bench-peers",
        "date": date.today().isoformat(),
        "disturbed": f"{sum(others > QUIET for others in measured)} of {len(measured)}",
    }
    target = output or ROOT / "bench" / "results" / f"peers-{stem}"
    write(target, header, found, journal)
    _say(f"wrote {target}.md, .csv, .json, .png" + ("" if complete else "; run again to go on"))


def write(
    target: Path, header: dict[str, Any], results: dict[str, Results], journal: Journal
) -> None:
    """The four files of a report."""
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        "md": report.markdown(header, results),
        "csv": report.comma_separated(header, results),
        "json": report.as_json(header, results, journal.records),
    }
    for extension, text in texts.items():
        Path(f"{target}.{extension}").write_text(text, encoding="utf-8")
    plot.plot(Path(f"{target}.png"), header, results)


def _sized(chosen: Case, quick: bool, rounds: int | None) -> Case:
    if quick and chosen.plan:  # its lengths are its columns
        chosen = dataclasses.replace(chosen, decode_seconds=0.5, rounds=1)
    elif quick:
        n_prompt, n_decode = chosen.n_prompt // 4, chosen.n_decode // 4
        chosen = dataclasses.replace(
            chosen, n_prompt=n_prompt, n_decode=n_decode, decode_seconds=1.0, rounds=2
        )
    return dataclasses.replace(chosen, rounds=rounds) if rounds else chosen


def _peers(results: dict[str, Results]) -> str:
    """How llama.cpp was built, as it says itself."""
    for result in results.values():
        for name, described in result.described.items():
            if name.startswith("llama.cpp") and "version" in described:
                return f"{described['version']} ({described['isa']})"
    return "no llama.cpp"


def _say(text: str) -> None:
    print(f"bench-peers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
