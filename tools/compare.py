"""Models side by side: perplexity, and KL and agreement with their teacher on held-out text.

``python -m tools.compare TEACHER NAME=MODEL... --out FILE`` measures models and adds a line for
each to FILE; what is in it already, with the same weights and texts, is not measured again.
``--table`` prints FILE as a table. Weights only: activations stay in float32, whatever the engine
does (``edgedb eval perplexity`` measures that).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgedb.display import one_line
from edgedb.errors import EdgeDBError
from edgedb.files import read_text

from .command import Arguments, check_writable, one_line_errors, say
from .curves import mend_log, read_log
from .decoder import Decoder, load_teacher
from .quality import CHUNK, Compared, compared, exponential, predicting_states
from .weights import Weights, open_weights

FIRST_WINDOWS = 10  # the short form of the perplexity: 20,480 tokens in windows of 2,048


class Recorded:
    """A teacher's last hidden states on windows ``ids [windows, tokens]``: many students are
    compared with it for one forward pass. The head is applied again each time, for logits would
    not fit."""

    def __init__(self, teacher: Decoder, ids: Tensor, *, rows: int = 4) -> None:
        self.ids, self.rows = ids, rows
        states = [predicting_states(teacher, part) for part in ids.split(rows)]
        self.head = states[0][1]
        self.hidden = [hidden.cpu() for hidden, _ in states]

    def against(self, student: Decoder) -> Iterator[Compared]:
        """What ``student`` predicts beside it, in the order of the text, a piece at a time."""
        for part, hidden in zip(self.ids.split(self.rows), self.hidden, strict=True):
            device = student.device
            targets = part[:, 1:].flatten().to(device)
            mine = predicting_states(student, part)
            yield from compared(mine, (hidden.to(device), self.head), targets)


@torch.no_grad()
def agreement(student: Decoder, teacher: Recorded) -> dict[str, float]:
    """``kl`` (nats a token, from the teacher), ``top1`` (agreement) and the student's ``ppl``."""
    total = np.zeros(3)
    count = 0
    for piece in teacher.against(student):
        terms = (piece.kl, piece.agrees, piece.nll)
        total += [t.double().sum().item() for t in terms]
        count += len(piece.targets)
    kl, same, nll = (total / count).tolist()
    return {"kl": kl, "top1": same, "ppl": exponential(nll)}


@torch.no_grad()
def window_losses(
    model: Decoder, ids: Tensor, progress: Callable[[int], None] = lambda done: None
) -> list[float]:
    """Mean negative log-likelihood of each window of ``ids [windows, tokens]``, nats a token."""
    losses: list[float] = []
    for window in ids:
        hidden, head = predicting_states(model, window[None])
        targets = window[1:].to(hidden.device)
        total = 0.0
        for at in range(0, len(hidden), CHUNK):
            piece = slice(at, at + CHUNK)
            logits = head.logits(hidden[piece])
            total += torch.nn.functional.cross_entropy(
                logits, targets[piece], reduction="sum"
            ).item()
        losses.append(total / len(hidden))
        progress(len(losses))
    return losses


def windows(file: Path, tokenizer: Any, length: int, count: int | None, skip: int = 0) -> Tensor:
    """The first ``count`` whole windows of ``length`` tokens of a text, after ``skip`` tokens."""
    ids = tokenizer.encode(read_text(file), add_bos=False)[skip:]
    whole = len(ids) // length
    n = whole if count is None else min(count, whole)
    if not n:
        raise EdgeDBError(f"{file}: {len(ids)} tokens are less than one window of {length}")
    return torch.from_numpy(np.array(ids[: n * length], np.int64).reshape(n, length))


class Bench:
    """Texts and a teacher, against which models are measured one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        from edgedb.convert.sources import open_source
        from edgedb.text.tokenizer import load_tokenizer

        self.device = torch.device(args.device)
        self.source = open_source(args.teacher)
        tokenizer = load_tokenizer(self.source.tokenizer_spec)
        self.text = windows(args.text, tokenizer, args.window, args.windows)
        self.held_out = windows(
            args.held_out, tokenizer, args.held_out_window, args.held_out_windows, args.skip
        )
        self.protocol = {
            "text": f"{args.text.name}, windows of {args.window}",
            "windows": len(self.text),
            "held_out": f"{args.held_out.name}, windows of {args.held_out_window} "
            f"after {args.skip} tokens",
            "held_out_windows": len(self.held_out),
        }
        self._recorded: Recorded | None = None

    def recorded(self) -> Recorded:
        """The teacher on the held-out text, computed when first needed."""
        if self._recorded is None:
            self._recorded = Recorded(load_teacher(self.source, self.device), self.held_out)
        return self._recorded

    def measure(self, weights: Weights, note: Callable[[str], None]) -> dict[str, Any]:
        """Perplexities, KL and agreement of one model."""
        started = time.monotonic()
        model = load_teacher(weights, self.device)
        held_out = agreement(model, self.recorded())
        note(f"KL {held_out['kl']:.4f}")
        losses = window_losses(model, self.text, lambda n: note(f"window {n} of {len(self.text)}"))
        return {
            "ppl_first": exponential(float(np.mean(losses[:FIRST_WINDOWS]))),
            "ppl": exponential(float(np.mean(losses))),
            "kl": held_out["kl"],
            "top1": held_out["top1"],
            "held_out_ppl": held_out["ppl"],
            "window_losses": [round(loss, 6) for loss in losses],
            "seconds": round(time.monotonic() - started, 1),
        }


def read_results(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file, as ``read_log``; an absent file has none."""
    return read_log(file) if file.exists() else []


def table(results: list[dict[str, Any]]) -> str:
    """Results as a Markdown table; the last line of a name counts."""
    rows = [
        "| weights | bits a weight: layers | all | ppl, first 10 | ppl, whole test | KL | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in {r["name"]: r for r in results}.values():
        whole = f"{r['ppl']:,.2f}" if r["windows"] > FIRST_WINDOWS else "-"
        rows.append(
            f"| {one_line(r['name'])} | {r['layer_bits']:.2f} | {r['all_bits']:.2f} "
            f"| {r['ppl_first']:,.2f} | {whole} | {r['kl']:.3f} | {r['top1']:.3f} |"
        )
    return "\n".join(rows)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """KL to the teacher of each name, worst first, with bits a weight and perplexity."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [r for r in {r["name"]: r for r in results}.values() if r["kl"] > 1e-4]
    shown.sort(key=lambda r: -r["kl"])
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.26 * len(shown)))
    bars = axes.barh(
        [f"{r['name']} ({r['layer_bits']:.2f} bits)" for r in shown], [r["kl"] for r in shown]
    )
    axes.bar_label(bars, [f"{r['ppl_first']:.3g}" for r in shown], padding=3, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="KL to the teacher, nats; at the bar's end: perplexity", xscale="log")
    axes.margins(x=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Arguments(
        prog="python -m tools.compare", description="Measure models against their teacher."
    )
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file")
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--text", type=Path, required=True, help="for the perplexity")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, help="only the first so many")
    parser.add_argument("--held-out", type=Path, required=True, help="for KL and agreement")
    parser.add_argument("--held-out-window", type=int, default=1024)
    parser.add_argument("--held-out-windows", type=int, default=48)
    parser.add_argument("--skip", type=int, default=2000, help="tokens before the held-out text")
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON line a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="print the results as a table")
    parser.add_argument("--plot", type=Path, help="the results as a picture")
    return parser


def show(name: str, note: str) -> None:
    """Progress on one line, for a person."""
    if sys.stdout.isatty():
        print(f"\r{one_line(name)}: {note}   ", end="", flush=True)


@one_line_errors
def main() -> None:
    """``python -m tools.compare TEACHER NAME=MODEL... --out FILE``."""
    args = build_parser().parse_intermixed_args()
    check_writable(args.out, args.plot)
    mend_log(args.out)
    bench = Bench(args)
    for model in args.models:
        name, found, path = model.partition("=")
        if not found:
            raise EdgeDBError(f"{model}: expected NAME=MODEL")
        weights = open_weights(path)
        key = {"sha256": weights.sha256, **bench.protocol}
        known = [r for r in read_results(args.out) if key.items() <= r.items()]
        if any(r["name"] == name for r in known):
            continue
        if known:
            line = {**known[-1], "name": name}
        else:
            figures = bench.measure(weights, partial(show, name))
            bits = {"layer_bits": weights.layer_bits, "all_bits": weights.all_bits}
            line = {"name": name, **bits, **figures, **key}
            line |= {"device": args.device, "record": weights.record}
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"{name}: perplexity {line['ppl_first']:.2f}, KL {line['kl']:.4f}")
    if args.table:
        print(table(read_results(args.out)))
    if args.plot:
        plot(read_results(args.out), args.plot)


if __name__ == "__main__":
    main()
