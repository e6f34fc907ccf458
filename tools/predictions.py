"""Where a student deviates: by the teacher's entropy, and on frequent tokens (head classes).

``python -m tools.predictions TEACHER NAME=MODEL... --held-out FILE --frequency FILE --out JSON``.
DB-LLM (arXiv 2402.11960, section 3.3) observes that a two-bit model leans towards frequent tokens
and errs most where the teacher is uncertain; this measures both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedb.errors import EdgeDBError

from .command import Arguments, check_writable, one_line_errors, say
from .compare import Recorded, windows
from .curves import label_log_axis
from .decoder import Decoder, load_teacher

HEADS = (10, 100, 1000, 10000)  # the most frequent so many tokens
BINS = 10  # of equally many predictions each, by the teacher's entropy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on a text, ``n`` of them over ``v`` tokens.

    Of each prediction ``[n]``: entropy, kl (nats, from the teacher), nll, agrees (its likeliest
    token is the teacher's). Of each token ``[v]``: mass, its mean probability; likeliest, how
    often it is the likeliest.
    """

    entropy: Floats
    kl: Floats
    nll: Floats
    agrees: Floats
    mass: Floats
    likeliest: Floats


@torch.no_grad()
def predict(model: Decoder, teacher: Recorded) -> Predictions:
    """Predictions on the windows on which ``teacher`` was recorded."""
    rows: list[Tensor] = []
    sums = torch.zeros(2, model.config.vocab_size, dtype=torch.float64)
    for piece in teacher.against(model):
        ps = piece.log_ps.exp()
        sums[0] += ps.sum(0, dtype=torch.float64).cpu()
        sums[1] += torch.bincount(piece.likeliest, minlength=ps.shape[1]).cpu()
        entropy = -(ps * piece.log_ps).sum(-1)
        rows.append(torch.stack([entropy, piece.kl, piece.nll, piece.agrees.float()]).cpu())
    entropies, kls, nlls, same = torch.cat(rows, dim=1).double().numpy()
    mass, likeliest = (sums / len(kls)).numpy()
    return Predictions(entropies, kls, nlls, same, mass, likeliest)


def head_shares(per_token: Floats, order: NDArray[np.integer]) -> list[float]:
    """Share of ``per_token [v]`` that falls on the first 10, 100, ... tokens of ``order``."""
    running = np.cumsum(per_token[order])
    return [float(running[min(n, len(running)) - 1] / running[-1]) for n in HEADS]


def by_entropy(of: Predictions, teacher: Predictions) -> list[dict[str, float]]:
    """Means over bins of equally many predictions, from the teacher's surest to its least sure."""
    parts = np.array_split(np.argsort(teacher.entropy, kind="stable"), BINS)
    return [
        {
            "teacher_entropy": float(teacher.entropy[part].mean()),
            "entropy": float(of.entropy[part].mean()),
            "kl": float(of.kl[part].mean()),
            "nll_added": float((of.nll[part] - teacher.nll[part]).mean()),
            "top1": float(of.agrees[part].mean()),
        }
        for part in parts
    ]


def describe(of: Predictions, teacher: Predictions, order: NDArray[np.integer]) -> dict[str, Any]:
    """What the report holds for one model."""
    return {
        "kl": float(of.kl.mean()),
        "top1": float(of.agrees.mean()),
        "entropy": float(of.entropy.mean()),
        # Correlation of a prediction's error with how unsure the teacher is of it.
        "kl_entropy_correlation": float(np.corrcoef(of.kl, teacher.entropy)[0, 1])
        if of.kl.any()
        else None,
        "head_mass": head_shares(of.mass, order),
        "head_likeliest": head_shares(of.likeliest, order),
        "by_entropy": by_entropy(of, teacher),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Two panels: KL by the teacher's entropy, and head mass relative to the teacher's."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    teacher = report["models"]["teacher"]
    for name, model in report["models"].items():
        if name == "teacher":
            continue
        bins = model["by_entropy"]
        left.plot([b["teacher_entropy"] for b in bins], [b["kl"] for b in bins], "o-", label=name)
        shares = np.array(model["head_mass"]) / teacher["head_mass"]
        right.plot(report["heads"], 100 * (shares - 1), "o-", label=name)
    left.set(xlabel="teacher's entropy, nats", ylabel="KL to the teacher, nats", yscale="log")
    label_log_axis(left.yaxis)
    right.set(
        xlabel="the most frequent so many tokens",
        ylabel="mass against the teacher's, %",
        xscale="log",
    )
    right.axhline(0, color="gray", linewidth=0.8)
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@one_line_errors
def main() -> None:
    """``python -m tools.predictions TEACHER NAME=MODEL...``."""
    from edgedb.convert.sources import open_source
    from edgedb.text.tokenizer import load_tokenizer

    from .weights import open_weights

    parser = Arguments(
        prog="python -m tools.predictions", description="Where students deviate from their teacher."
    )
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file")
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--held-out-window", type=int, default=1024)
    parser.add_argument("--held-out-windows", type=int, default=48)
    parser.add_argument("--skip", type=int, default=2000, help="tokens before the held-out text")
    parser.add_argument("--frequency", type=Path, required=True, help="text to count tokens in")
    parser.add_argument("--out", type=Path, required=True, help="report, JSON")
    parser.add_argument("--plot", type=Path, help="the same as a picture")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_intermixed_args()
    check_writable(args.out, args.plot)
    pairs: Sequence[tuple[str, str, str]] = [model.partition("=") for model in args.models]
    for name, found, _ in pairs:
        if not found:
            raise EdgeDBError(f"{name}: expected NAME=MODEL")
    source = open_source(args.teacher)
    tokenizer = load_tokenizer(source.tokenizer_spec)
    ids = windows(args.held_out, tokenizer, args.held_out_window, args.held_out_windows, args.skip)
    counted = windows(args.frequency, tokenizer, 1, None).numpy().ravel()
    counts = np.bincount(counted, minlength=source.config.vocab_size).astype(np.float64)
    order = np.argsort(-counts, kind="stable")
    model = load_teacher(source, args.device)
    recorded = Recorded(model, ids)
    teacher = predict(model, recorded)
    text = np.bincount(ids[:, 1:].numpy().ravel(), minlength=len(counts)).astype(np.float64)
    report: dict[str, Any] = {
        "held_out": args.held_out.name,
        "predictions": len(teacher.kl),
        "frequency": args.frequency.name,
        "heads": HEADS,
        "text_head": head_shares(text, order),
        "models": {"teacher": describe(teacher, teacher, order)},
    }
    for name, _, path in pairs:
        model = load_teacher(open_weights(path), args.device)
        report["models"][name] = describe(predict(model, recorded), teacher, order)
        say(f"{name}: KL {report['models'][name]['kl']:.4f}")
    args.out.write_text(json.dumps(report, indent=1))
    if args.plot:
        plot(report, args.plot)


if __name__ == "__main__":
    main()
