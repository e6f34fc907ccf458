"""Short trainings that differ in one thing, at equal compute.

    python -m tools.ablation SOURCE --text TEXT --out OUT --validation VAL.npy RUN...

A run is ``ARM:SEED``, the arms are listed by ``--help``. Each leaves ``OUT/ARM-SEED.json`` with
its settings and its quality on every validation text; runs that have one are skipped. With --keep
the students stay (``OUT/ARM-SEED/student.safetensors``), for ``tools.predictions``. All runs of a
command share one process, so that graphs are compiled once.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgedb.errors import EdgeDBError

from .command import Arguments, one_line_errors
from .dad import LossOptions
from .decoder import Decoder, load_teacher, mean_square_inputs
from .options import TrainOptions
from .quality import evaluate, read_windows
from .student import make_student
from .text import TextMix
from .trainer import Trainer

PLAIN = LossOptions()


@dataclass(frozen=True)
class Arm:
    """One thing that is tried; what it does not name is as in the arm "plain"."""

    what: str
    start: str = "weighted"
    loss: LossOptions = PLAIN
    changes: tuple[tuple[str, Any], ...] = ()


def _dad(gamma: float, plain_share: float = 0.0) -> LossOptions:
    return LossOptions(gamma=gamma, plain_share=plain_share)


ARMS = {
    "plain": Arm("KL, weighted least squares"),
    "dad-0": Arm("twin-entropy weight, gamma 0", loss=_dad(0.0)),
    "dad-0.1": Arm("gamma 0.1", loss=_dad(0.1)),
    "dad-0.3": Arm("gamma 0.3", loss=_dad(0.3)),
    "dad-0.5": Arm("gamma 0.5", loss=_dad(0.5)),
    "half-0.1": Arm("half KL, half gamma 0.1", loss=_dad(0.1, 0.5)),
    "absmax": Arm("start: the paper's, s = max|w| / 2", start="absmax"),
    "searched": Arm("start: the paper's grid, searched s of free sign", start="searched"),
    "least-squares": Arm("start: least squares", start="least-squares"),
    "scales": Arm("scales only", changes=(("mode", "scales"), ("lr_scale", 2e-3))),
    "tail": Arm("latents until 80%, then scales alone", changes=(("latents_until", 0.8),)),
    "hidden": Arm("and the last hidden states' distance", loss=LossOptions(hidden=1.0)),
    "data-free": Arm("no real text", changes=(("real_share", 0.0),)),
    "trial": Arm(
        "searched start, half the rate, embedding frozen",
        start="searched",
        changes=(("lr_latent", 1e-3), ("lr_scale", 2e-4), ("lr_embedding", 0.0)),
    ),
}


def options_of(arm: Arm, seed: int, base: TrainOptions) -> TrainOptions:
    """The settings of one run."""
    return replace(base, seed=seed, loss=arm.loss, **dict(arm.changes))


def run_arm(
    name: str,
    seed: int,
    teacher: Decoder,
    text: Path,
    validation: dict[str, torch.Tensor],
    base: TrainOptions,
    work: Path,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Train one student from its start and measure it."""
    arm = ARMS[name]
    options = options_of(arm, seed, base)
    mix = TextMix(text, options.length, real_share=options.real_share, seed=seed)
    begun = time.monotonic()
    importance = None
    if arm.start == "weighted":
        ids = torch.from_numpy(mix.batch(0, 8)).to(teacher.device)
        importance = mean_square_inputs(teacher, ids)
    student = make_student(teacher, arm.start, importance)
    on_gpu = teacher.device.type == "cuda"
    before = {
        key: evaluate(student, teacher, ids[:4], bfloat16=on_gpu) for key, ids in validation.items()
    }
    Trainer(student, teacher, options, mix, work).train(save=keep)
    quality = {
        key: evaluate(student, teacher, ids, bfloat16=on_gpu) for key, ids in validation.items()
    }
    found = {
        "arm": name,
        "what": arm.what,
        "seed": seed,
        "tokens": options.steps * options.batch * options.length,
        "start": before,
        "quality": quality,
        "seconds": round(time.monotonic() - begun, 1),
        "options": asdict(options),
    }
    return found


def read_run(run: str) -> tuple[str, int]:
    """``"ARM:SEED"`` as its two parts; the seed is 0 if there is none. Raises ``EdgeDBError``."""
    name, _, seed = run.partition(":")
    if name not in ARMS:
        raise EdgeDBError(f"{run}: no such arm; choose one of {', '.join(ARMS)}")
    if not (seed or "0").isdecimal():
        raise EdgeDBError(f"{run}: expected ARM:SEED, the seed a whole number")
    return name, int(seed or 0)


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    listed = "; ".join(f"{name}: {arm.what}" for name, arm in ARMS.items())
    parser = Arguments(description="Compare settings.", epilog=f"Arms. {listed}.")
    parser.add_argument("source")
    parser.add_argument("runs", nargs="+", metavar="ARM:SEED")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", type=Path, action="append", default=[])
    parser.add_argument("--steps", type=int, default=280)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--keep", action="store_true", help="save the trained students")
    parser.add_argument("--until", type=float, default=math.inf, help="begin no run after (epoch)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    runs = [read_run(run) for run in args.runs]  # a mistake in the last is seen before the first
    base = TrainOptions(
        steps=args.steps, batch=args.batch, micro_batch=args.batch, length=args.length,
        lr_latent=2e-3, lr_scale=3e-4, lr_embedding=3e-4, warmup=10, final_share=0.02,
        real_share=0.2, validate_every=10**9, save_every=10**9, log_every=20,
        compile=torch.device(args.device).type == "cuda",
    )  # fmt: skip
    from edgedb.convert.sources import open_source

    torch.set_float32_matmul_precision("high")
    teacher = load_teacher(open_source(args.source), args.device)
    validation = read_windows(args.validation, teacher.config.vocab_size)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, seed in runs:
        path = args.out / f"{name}-{seed}.json"
        if path.exists() or time.time() > args.until:
            continue
        work = args.out / f"{name}-{seed}"
        found = run_arm(name, seed, teacher, args.text, validation, base, work, keep=args.keep)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1))
        os.replace(partial, path)
        print("RUN", name, seed, found["seconds"], found["quality"], flush=True)


if __name__ == "__main__":
    main()
