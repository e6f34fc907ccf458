"""``python -m tools.research NAME``: see ``docs/research.md``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from edgedb.errors import EdgeDBError

from ..command import Arguments, one_line_errors, say
from .results import RECORDS, Results


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``corpus``."""
    parser.add_argument("tokenizer", help="GGUF file or Hugging Face folder whose ids are taken")
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, or .npy of token ids")
    parser.add_argument("--held-out", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256, help="of a held-out window")
    parser.add_argument("--windows", type=int, default=96, help="of each held-out text")


def corpus(args: argparse.Namespace) -> None:
    """Text in a small vocabulary."""
    from edgedb.convert.sources import open_source

    from .corpus import write_corpus

    held_out = dict(pair.split("=", 1) for pair in args.held_out if "=" in pair)
    if len(held_out) < len(args.held_out):
        raise EdgeDBError("--held-out: expected NAME=FILE")
    spec = open_source(args.tokenizer).tokenizer_spec
    counts = write_corpus(
        spec,
        args.out,
        args.files,
        {name: Path(file) for name, file in held_out.items()},
        size=args.vocabulary,
        length=args.length,
        count=args.windows,
    )
    for name, count in counts.items():
        say(f"{name}: {count:,} tokens")


def add_students(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``students``."""
    from .jobs import QUESTIONS

    parser.add_argument("corpus", type=Path, help="folder of the command corpus")
    parser.add_argument("questions", nargs="*", metavar="QUESTION",
                        help=f"all, or some of {', '.join(QUESTIONS)}")  # fmt: skip
    parser.add_argument("--work", type=Path, required=True, help="folder for weights")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="to stop after")
    parser.add_argument("--processes", type=int, default=1, help="on each device")
    parser.add_argument("--small", action="store_true", help="as in the tests")
    parser.add_argument("--device", action="append", help="may be given again; default: all GPUs")


def students(args: argparse.Namespace) -> None:
    """Questions 1, 3, 4 and 5: small language models."""
    from .jobs import QUESTIONS, SMALL, Size, jobs
    from .pool import run

    for question in args.questions:
        if question not in QUESTIONS:
            raise EdgeDBError(f"{question}: choose among {', '.join(QUESTIONS)}")
    size = SMALL if args.small else Size()
    found = jobs(size, tuple(args.questions) or tuple(QUESTIONS))
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = args.device or gpus or ["cpu"]
    missing = run(
        found,
        Results(args.out),
        args.corpus,
        args.work,
        size,
        devices * args.processes,
        seconds=args.seconds,
    )
    for key in missing:
        say(f"not done: {key}")


def add_vision(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vision``."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="as in the tests")


def vision(args: argparse.Namespace) -> None:
    """Question 2: images."""
    from .vision import SMALL, Size, run

    run(Results(args.out), SMALL if args.small else Size(), args.seeds)


def add_entropy(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``entropy``."""
    parser.add_argument("teacher", help="Hugging Face folder or GGUF file")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE",
                        help="to predict: UTF-8 text, or .npy of token ids")  # fmt: skip
    parser.add_argument("--frequency", type=Path, required=True, help="text to count tokens in")
    parser.add_argument("--windows", type=int, default=8, help="of each text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", default="cpu")


def entropy(args: argparse.Namespace) -> None:
    """Question 5 on a model that ships."""
    from .shipped import run

    run(args, Results(args.out))


def add_cost(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``cost``."""
    parser.add_argument("model", type=Path, help=".dbb file")
    parser.add_argument("--decode", type=int, default=64, help="tokens of a test")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)


def cost(args: argparse.Namespace) -> None:
    """Question 6: operations, time and energy."""
    from .cost import run

    run(args.model, Results(args.out), args.decode, args.prompt, args.rounds)


def add_tables(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``tables``."""
    parser.add_argument("--json", action="store_true", help="the records, one a line")


def tables(args: argparse.Namespace) -> None:
    """What was measured, as tables in Markdown."""
    from .tables import all_tables

    records = Results(args.out).read()
    print("\n".join(map(json.dumps, records)) if args.json else all_tables(records))


COMMANDS: dict[
    str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]
] = {
    "corpus": (add_corpus, corpus),
    "students": (add_students, students),
    "vision": (add_vision, vision),
    "entropy": (add_entropy, entropy),
    "cost": (add_cost, cost),
    "tables": (add_tables, tables),
}


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    parser = Arguments(prog="python -m tools.research", description="What the paper left open.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for name, (add, do) in COMMANDS.items():
        own = commands.add_parser(name, help=do.__doc__, description=do.__doc__)
        if name != "corpus":
            own.add_argument("--out", type=Path, default=RECORDS, help="file of records")
        add(own)
    args = parser.parse_args()
    COMMANDS[args.command][1](args)


if __name__ == "__main__":
    main()
