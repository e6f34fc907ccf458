"""Train a student block by block, then its scales by the whole model's predictions.

    python -m tools.blocks TEACHER OUT.safetensors --plan 1,layers.0-3=2 --text FILE

A layer learns at a time, from the states that the layers before it give, so that a GPU need not
hold a model. OUT.safetensors is a student (``docs/checkpoint.md``), for ``tools.export`` or for
``tools.distill --student``. What a killed run has finished is in OUT.safetensors.blocks: the same
command goes on from there. How it works: ``docs/blocks.md``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgedb.cli.console import new_console
from edgedb.convert.plan import Plan, plan_of_file, read_plan
from edgedb.convert.windows import lead_of, windows
from edgedb.errors import EdgeDBError
from edgedb.text.spec import TokenizerSpec

from .block_run import TARGETS, BlockRun, RunOptions
from .block_training import BlockOptions
from .checkpoint import load_student, save_student
from .command import Arguments, check_writable, one_line_errors, say
from .decoder import Decoder, WeightSource, load_teacher
from .scales import ScaleOptions
from .stacks import MAX_PLANES
from .student import plan_of
from .text import read_stream
from .weights import sha256_of


@dataclass(frozen=True)
class Text:
    """What is trained on: ``tokens`` of ``files``, in sequences of ``length``."""

    files: list[Path]
    tokens: int = 262144
    length: int = 1024

    def ids(self, source: WeightSource, spec: TokenizerSpec | None) -> NDArray[np.int64]:
        """int64 ``[sequences, tokens]``, spread evenly. Raises ``EdgeDBError`` if they are few."""
        length = min(self.length, self.tokens, source.config.max_position_embeddings)
        stream = read_stream(self.files, spec, source.config.vocab_size)
        lead = lead_of(spec) if spec else []
        found = windows(self.names, stream, lead, self.tokens // length, length)
        return found.astype(np.int64)

    @property
    def names(self) -> str:
        """Of the files, without their folders."""
        return ", ".join(path.name for path in self.files)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Arguments(prog="python -m tools.blocks", description="Train a student block by block.")
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file of the teacher")
    parser.add_argument("out", type=Path, help="the student.safetensors to write")
    parser.add_argument("--text", type=Path, action="append", required=True,
                        help="UTF-8 text, or .npy of token ids; may be given again")  # fmt: skip
    parser.add_argument("--plan", default="", metavar="PLAN",
                        help="pairs of planes of each matrix, one where nothing is said: "
                        "layers.0-3=2,layers.*.mlp_down=1.5; or a file of such")  # fmt: skip
    parser.add_argument("--start", type=Path,
                        help="begin with the planes of this .dbb or student, which has the plan, "
                        "instead of a fit")  # fmt: skip
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What ``options_of`` reads, and how much text on which device."""
    parser.add_argument("--tokens", type=int, default=Text.tokens, help="to train on")
    parser.add_argument("--length", type=int, default=Text.length, help="of a sequence")
    parser.add_argument("--targets", choices=TARGETS, default=RunOptions.targets,
                        help="of a layer: what the teacher's makes of the student's states, or the "
                        "teacher's own states")  # fmt: skip
    parser.add_argument("--gradient-tokens", type=int, default=RunOptions.gradient_tokens,
                        help="that channels are weighted by; 0: all alike")  # fmt: skip
    own = BlockOptions()
    parser.add_argument("--epochs", type=int, default=own.epochs,
                        help="of each layer; 0: scales alone, at the end")  # fmt: skip
    parser.add_argument("--batch", type=int, default=own.batch, help="sequences of a step")
    parser.add_argument("--lr-latent", type=float, default=own.lr_latent,
                        help="of a matrix's root mean square")  # fmt: skip
    parser.add_argument("--lr-scale", type=float, default=own.lr_scale)
    parser.add_argument("--start-tokens", type=int, default=own.start_tokens,
                        help="that the fit sees")  # fmt: skip
    last = ScaleOptions()
    parser.add_argument("--scale-steps", type=int, default=last.steps, help="at the end; 0: none")
    parser.add_argument("--scale-batch", type=int, default=last.batch, help="sequences")
    parser.add_argument("--scale-rate", type=float, default=last.rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster steps")
    parser.add_argument("--device", default=default_device())


def settings(flags: list[str]) -> argparse.Namespace:
    """What ``add_settings`` asks for, of a list of flags."""
    parser = Arguments()
    add_settings(parser)
    return parser.parse_args(flags)


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def options_of(args: argparse.Namespace) -> RunOptions:
    """The settings of a command line. Raises ``EdgeDBError`` for numbers that make no sense."""
    counts = ("tokens", "length", "batch", "start_tokens", "scale_batch")
    for name in counts:
        if getattr(args, name) < 1:
            raise EdgeDBError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more"
            )
    rates = ("lr_latent", "lr_scale", "scale_rate")
    for name in ("gradient_tokens", "epochs", "scale_steps", *rates, "seed"):
        if not getattr(args, name) >= 0:
            raise EdgeDBError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: expected 0 or more"
            )
    return RunOptions(
        args.targets,
        args.gradient_tokens,
        BlockOptions(
            epochs=args.epochs,
            batch=args.batch,
            lr_latent=args.lr_latent,
            lr_scale=args.lr_scale,
            start_tokens=args.start_tokens,
            seed=args.seed,
        ),
        ScaleOptions(
            steps=args.scale_steps,
            batch=args.scale_batch,
            micro_batch=args.batch,
            rate=args.scale_rate,
            seed=args.seed,
        ),
        args.compile,
    )


def start_of(path: Path, source: WeightSource) -> Decoder:
    """A student on the CPU to begin with. Raises ``EdgeDBError`` for one of another model."""
    if path.suffix == ".dbb":
        from .starts import student_of_model

        return student_of_model(path, load_teacher(source))
    student, _ = load_student(path)
    if student.config != source.config:
        raise EdgeDBError(f"{path}: is the student of another model than the teacher")
    return student


def full_plan(text: str, source: WeightSource, start: Decoder | None) -> Plan:
    """Planes of the matrices: those of ``text``, which a start must have."""
    plan = read_plan(plan_of_file(text), source.config, MAX_PLANES)
    if start is None:
        return plan
    stored = plan_of(start)
    for name, planes in plan.items():
        if stored.get(name) != planes:
            raise EdgeDBError(
                f"the start has {name} in {stored.get(name, 0) / 2:g} pairs, not {planes / 2:g}: "
                "give the plan that it was made with, or none"
            )
    return stored


def train(
    teacher: str | Path,
    out: Path,
    text: Text,
    plan: str,
    options: RunOptions,
    *,
    device: str,
    start: Path | None = None,
) -> None:
    """Train a student of a checkpoint and write it to ``out``, or go on with it.

    plan: as ``edgedb.convert.plan`` reads it. Raises ``EdgeDBError`` for whatever does not fit.
    """
    from edgedb.convert.sources import open_source

    check_writable(out)
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    source = open_source(teacher)
    spec = source.tokenizer_spec
    ids = text.ids(source, spec)
    first = start_of(start, source) if start else None
    facts = {
        "teacher": source.fingerprint(),
        "text": text.names,
        "tokens": ids.size,
        "start": start.name if start else "fit",
    }
    key = facts | {"start_sha256": sha256_of([start]) if start else None}
    run = BlockRun(
        source, out, ids, full_plan(plan, source, first), options,
        device=torch.device(device), start=first, key=key, console=new_console(),
    )  # fmt: skip
    student = run.run()
    facts |= run.record | {"options": asdict(options)}
    facts["seconds"] = round(time.monotonic() - began)
    save_student(out, student, step=0, provenance=facts, tokenizer=spec)
    run.close()
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {facts['seconds']} s")


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    args = build_parser().parse_args()
    text = Text(args.text, args.tokens, args.length)
    train(
        args.teacher,
        args.out,
        text,
        args.plan,
        options_of(args),
        device=args.device,
        start=args.start,
    )


if __name__ == "__main__":
    main()
