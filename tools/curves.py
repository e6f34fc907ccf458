"""A picture of a run: ``python -m tools.curves RUN`` draws ``log.jsonl`` as ``curves.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedb.errors import EdgeDBError

from .command import Arguments, one_line_errors, say

TICKS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)  # of a decade; few runs span one


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file, ``log.jsonl``; a last one cut short by a kill is left out.

    Raises ``EdgeDBError`` if there is no log or a line is no JSON.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise EdgeDBError(f"{path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise EdgeDBError(f"{path}: line {number} is no JSON") from None
    return records


def rewrite_log(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace the lines of ``path`` by ``records``."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records))
    partial.replace(path)


def mend_log(path: Path) -> None:
    """Drop a last line cut short by a kill: it would swallow the next one that is appended."""
    if path.exists() and not path.read_text().endswith("\n"):
        rewrite_log(path, read_log(path))


def draw(log: Path, out: Path) -> None:
    """KL on training text by kind, and KL and perplexity on every validation text, by step.

    Raises ``EdgeDBError`` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise EdgeDBError("curves need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(log)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, label in (("kl_sampled", "training, sampled text"), ("kl_real", "training, real")):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            left.plot(*zip(*_smooth(points), strict=True), label=label, linewidth=1)
    for text in sorted({r["validation"] for r in records if "validation" in r}):
        found = [r for r in records if r.get("validation") == text]
        steps = [r["step"] for r in found]
        left.plot(steps, [r["kl"] for r in found], label=text, marker=".")
        right.plot(steps, [r["ppl"] for r in found], label=text, marker=".")
        right.axhline(found[-1]["teacher_ppl"], linestyle=":", linewidth=1, color="gray")
    left.set(xlabel="step", ylabel="KL to the teacher, nats a token", yscale="log")
    right.set(xlabel="step", ylabel="perplexity (dotted: the teacher)", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        label_log_axis(axes.yaxis)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def label_log_axis(axis: Any) -> None:
    """Plain numbers at ``TICKS`` of every decade, on a logarithmic axis of matplotlib."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=TICKS))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _smooth(points: list[tuple[int, float]], window: int = 20) -> list[tuple[int, float]]:
    """Means of up to ``window`` neighbours: the KL of one batch is mostly the batch's."""
    window = max(1, min(window, len(points) // 10))
    out = []
    for start in range(0, len(points) - window + 1, window):
        part = points[start : start + window]
        out.append((part[-1][0], sum(value for _, value in part) / window))
    return out


def draw_if_possible(run: Path) -> None:
    """``draw`` after a training, whose result must not hang on a picture."""
    try:
        draw(run / "log.jsonl", run / "curves.png")
    except (EdgeDBError, OSError) as error:
        say(f"no curves drawn: {error}")


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    parser = Arguments(description="Draw the curves of a training run.")
    parser.add_argument("run", type=Path, help="folder with log.jsonl")
    parser.add_argument("--out", type=Path, help="PNG file  [RUN/curves.png]")
    args = parser.parse_args()
    draw(args.run / "log.jsonl", args.out or args.run / "curves.png")


if __name__ == "__main__":
    main()
