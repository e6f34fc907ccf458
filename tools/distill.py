"""Train a two-bit student against its full-precision teacher.

    python -m tools.distill SOURCE --text TEXT --out RUN --steps 1600

RUN gets ``log.jsonl``, ``state.pt`` (everything: the same command goes on exactly where the last
one was killed) and ``student.safetensors`` (compact, see ``tools.checkpoint``), and ``curves.png``
where matplotlib is installed. Started by ``torchrun --nproc-per-node N -m tools.distill ...`` the
batch is spread over N processes, on one host or many.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from edgedb.convert.plan import read_plan
from edgedb.errors import EdgeDBError

from . import parallel
from .checkpoint import load_student
from .command import Arguments, one_line_errors
from .curves import draw_if_possible
from .dad import LossOptions
from .decoder import Decoder, load_teacher, mean_square_inputs
from .options import DECAYS, MODES, TrainOptions
from .quality import read_windows
from .stacks import MAX_PLANES
from .starts import moved, student_of_model
from .student import STARTS, make_student
from .text import TextMix
from .trainer import Trainer


def build_parser() -> argparse.ArgumentParser:
    """The command line; every field of ``TrainOptions`` and ``LossOptions`` is an option."""
    parser = Arguments(description="Distill a two-bit student (FDB + DAD).")
    parser.add_argument("source", help="Hugging Face directory or GGUF file of the teacher")
    parser.add_argument("--text", type=Path, required=True, help="folder of tools.generate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--student",
        type=Path,
        help="go on from this student.safetensors, or start with the planes of this .dbb; what "
        "--pairs wants in other planes is fitted anew",
    )
    parser.add_argument("--start", choices=STARTS, default="weighted")
    parser.add_argument(
        "--validation",
        type=Path,
        action="append",
        default=[],
        help=".npy of token ids, [windows, tokens]; may be given again",
    )
    parser.add_argument(
        "--pairs",
        default="",
        metavar="PLAN",
        help="pairs of planes of each matrix: 1.5,layers.0-3=2,layers.*.mlp_down=2,embedding=2. "
        "Where nothing is said --student's, or else one in the layers and plain tables",
    )
    parser.add_argument(
        "--parallel",
        choices=parallel.CHOICES,
        default="auto",
        help="under torchrun: a copy in every process (ddp) or models in pieces (fsdp, FSDP2)",
    )
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    defaults = TrainOptions(steps=0)
    for owner in (defaults, defaults.loss):
        for name, value in vars(owner).items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
            elif name == "steps":
                parser.add_argument(flag, type=int, required=True)
            elif name != "loss":
                kind = float if value is None else type(value)
                choices = {"mode": MODES, "decay": DECAYS}.get(name)
                parser.add_argument(flag, type=kind, default=value, choices=choices)
    return parser


def first_student(
    args: argparse.Namespace, teacher: Decoder, text: TextMix, *, sharded: bool
) -> Decoder:
    """The student of ``--student``, or one made from the teacher; in the planes of ``--pairs``.

    Raises ``EdgeDBError`` for a student of another model than the teacher's.
    """
    device = teacher.device
    plan = read_plan(args.pairs, teacher.config, MAX_PLANES)
    ids = torch.from_numpy(text.batch(0, 8)).to(device)
    if not args.student:
        importance = mean_square_inputs(teacher, ids) if args.start == "weighted" else None
        student = make_student(teacher, args.start, importance, plan, sharded=sharded)
    elif args.student.suffix == ".dbb":
        student = student_of_model(args.student, teacher, sharded=sharded)
    else:
        student, _ = load_student(args.student, device, sharded=sharded)
    if student.config != teacher.config:
        raise EdgeDBError(f"{args.student}: is the student of another model than {args.source}")
    return moved(student, plan, ids, sharded=sharded)


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    args = build_parser().parse_args()
    from edgedb.convert.sources import open_source

    names = vars(args)
    loss = LossOptions(**{key: names[key] for key in LossOptions.__dataclass_fields__})
    fields = set(TrainOptions.__dataclass_fields__) - {"loss"}
    options = TrainOptions(**{key: names[key] for key in fields}, loss=loss)
    torch.set_float32_matmul_precision("high")
    device = parallel.start(torch.device(args.device))
    source = open_source(args.source)
    sharded = parallel.is_sharded(args.parallel, source.config, device)
    text = TextMix(args.text, options.length, real_share=options.real_share, seed=options.seed)
    text.check(source.config.vocab_size)
    validation = read_windows(args.validation, source.config.vocab_size)
    teacher = load_teacher(source, device, sharded=sharded)
    student = first_student(args, teacher, text, sharded=sharded)
    trainer = Trainer(
        student,
        teacher,
        options,
        text,
        args.out,
        validation=validation,
        provenance={
            "teacher": source.fingerprint(),
            "start": str(args.student.name) if args.student else args.start,
            "processes": parallel.rank_and_world()[1],
            "parallel": "fsdp" if sharded else "ddp",
            "text": {"sampled_tokens": text.n_sampled, "real_tokens": text.n_real},
        },
        tokenizer=source.tokenizer_spec,
    )
    trainer.resume()
    trainer.train(args.max_seconds)
    if not trainer.rank:
        draw_if_possible(args.out)
    if trainer.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
