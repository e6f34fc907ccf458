"""``python -m bench.quality``: see ``--help``."""

from __future__ import annotations

import platform
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import click

from bench.peers.cases import Paths
from bench.peers.commit import commit_of
from bench.peers.runner import Journal
from edgedb.cli.options import OneLineErrors
from edgedb.measure.benchmark import Machine

from . import picture as picture_of
from . import plot, report, speed, zeroshot
from .llama_cpp import FORMATS, LlamaCpp
from .ours import LAYER_BITS, Ours
from .rows import Rows
from .teachers import Sources, run

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
DEFAULT, ONE_PAIR = (
    MODELS / "smollm2-135m-instruct-mixed.dbb",
    MODELS / "smollm2-135m-instruct-db2.dbb",
)
# What makes a model, and what runs it: a commit of anything else leaves figures as they are.
MEASURED = (*(f"edgedb/{room}" for room in ("convert", "format", "model", "ops")), "native")
PARTS = ("peers", "ours", "models", "speed", "zero-shot")


class _Command(OneLineErrors):
    prefix = "bench-quality"


@click.command(cls=_Command)
@click.option(
    "--parts",
    default="peers,ours,models,speed",
    show_default=True,
    help=f"What to measure, of {', '.join(PARTS)}; `ours` alone after a change of the exporter, "
    "no part at all to write the report again.",
)
@click.option("--rounds", type=int, default=speed.ROUNDS, show_default=True, help="Of decoding.")
@click.option(
    "--threads",
    type=int,
    help="Of everything but decoding, which is measured with one and two.  [default: all cores]",
)
@click.option("--fresh-speed", is_flag=True, help="Forget the rounds of an earlier run.")
@click.option(
    "--shared",
    type=click.Path(path_type=Path, exists=True),
    default=ROOT.parent / "shared",
    help="Where texts, questions and the teacher's recipe are.  [default: ../shared]",
)
@click.option(
    "--docs",
    is_flag=True,
    help="Write the tables into docs/quality.md and the README's picture, too.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Reports without their extension.  [default: bench/results/quality-CPU]",
)
def main(
    parts: str,
    rounds: int,
    threads: int | None,
    fresh_speed: bool,
    shared: Path,
    docs: bool,
    output: Path | None,
) -> None:
    """Measure edgedb's and llama.cpp's quantizers on one teacher, and write one report.

    Run again after an interruption: finished figures are kept in .cache/quality/rows.jsonl. Those
    of edgedb belong to a commit and are measured again at another one.
    """
    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    if unknown := set(wanted) - set(PARTS):
        raise click.UsageError(f"unknown: {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    bench = Bench(shared, threads)
    for part in PARTS:
        if part in wanted:
            bench.part(part, rounds, fresh_speed)
    bench.write(output, docs=docs)


class Bench:
    """Everything that the parts share."""

    def __init__(self, shared: Path, threads: int | None) -> None:
        made = ROOT / ".cache" / "quality"
        made.mkdir(parents=True, exist_ok=True)
        self.paths = Paths(ROOT, ROOT / ".cache" / "peers")
        self.sources = Sources(shared, ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf", made)
        self.rows, self.speeds = Rows(made / "rows.jsonl"), made / "speed.jsonl"
        self.commit = commit_of(ROOT, *MEASURED)
        self.machine = Machine.here()
        folder = self.paths.file("build") / "bin"
        self.threads = threads or self.machine.cores
        version = self._version()
        self.llama_cpp = LlamaCpp(folder, self.sources, version, self.threads, _say)
        self.ours = Ours(self.sources, self.commit, self.threads, _say)
        key = {"cpu": self.machine.cpu, "cores": self.machine.cores, "commit": self.commit}
        self.journal_key = key

    def part(self, part: str, rounds: int, fresh_speed: bool) -> None:
        """Measure one of ``PARTS``."""
        if part == "peers":
            base = self.llama_cpp.base(self.sources.teacher())
            for format in FORMATS:
                self.llama_cpp.measure(format, base, self.rows)
        elif part == "ours":
            base = self.llama_cpp.base(self.sources.teacher())
            for bits in LAYER_BITS:
                self.ours.measure(bits, base, self.rows)
        elif part == "models":
            base = self.llama_cpp.base(self.llama_cpp.in_float(self.sources.gguf))
            for name, path in self._models().items():
                self.ours.model(name, path, base, self.rows)
        elif part == "speed":
            race = speed.Race(self.paths, self.llama_cpp, self.ours)
            cases = [race.wide(), race.real(DEFAULT)]
            journal = Journal(self.speeds, self.journal_key, fresh=fresh_speed)
            speed.race(cases, journal, ROOT, rounds, _say)
        else:
            models, folder = self._models(), self.sources.questions
            zeroshot.run(models, folder, self.rows, threads=self.threads, progress=_say)

    def write(self, output: Path | None, *, docs: bool) -> None:
        """The three files of a report, and its tables in the docs."""
        machine = self.machine
        header: dict[str, Any] = {
            **self.journal_key,
            "system": machine.system,
            "python": platform.python_version(),
            "peers": f"llama-cpp-python {self.llama_cpp.version}",
            "command": "make bench-quality",
            "date": date.today().isoformat(),
        }
        raced, races = speed.recorded(self.speeds)
        found = report.Found({**header, "decode_at": raced}, self.rows.all(), races)
        stem = re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-")
        target = output or ROOT / "bench" / "results" / f"quality-{stem}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{target}.md").write_text(report.markdown(found), encoding="utf-8")
        Path(f"{target}.json").write_text(report.as_json(found), encoding="utf-8")
        drawn = plot.plot(Path(f"{target}.png"), found)
        if docs:
            page = ROOT / "docs" / "quality.md"
            picture = f"../bench/results/{target.name}.png" if drawn else None
            text = report.in_page(page.read_text("utf-8"), found, picture)
            page.write_text(text, encoding="utf-8")
            picture_of.write(Path(f"{target}.json"))
        _say(f"wrote {target}.md, .json" + ", .png" * drawn)

    def _models(self) -> dict[str, Path]:
        """The teacher in eight bits, whose KL from the float one is in the report, and both trained
        models."""
        teacher = self.sources.made / "teacher-int8.dbb"
        if not teacher.exists():
            _say(f"making {teacher.name}")
            command = [sys.executable, "-m", "edgedb", "convert", str(self.sources.gguf)]
            run([*command, str(teacher), "--method", "int8"], f"cannot make {teacher.name}")
        return {report.TEACHER: teacher, report.DEFAULT_MODEL: DEFAULT, "one pair": ONE_PAIR}

    def _version(self) -> str:
        python = self.paths.peer_python
        code = "from importlib.metadata import version; print(version('llama-cpp-python'))"
        return run(
            [python, "-c", code], "llama.cpp is not built; make bench-quality does it"
        ).strip()


def _say(text: str) -> None:
    print(f"bench-quality: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
