"""KL against decode speed: the better, the lower and the more to the right."""

from __future__ import annotations

from pathlib import Path

from bench.peers.plot import OURS, THEIRS

from . import ours
from .report import Found


def plot(path: Path, found: Found) -> bool:
    """Every row on the fair teacher whose speed was measured; whether there is any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(row, speed) for row in found.fair if (speed := found.decode(row))]
    if not rows:
        return False
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for mine, color, label in ((True, OURS[0], "edgedb"), (False, THEIRS[0], "llama.cpp")):
        points = [(row, s) for row, s in rows if (row["kind"] == ours.KIND) == mine]
        if not points:
            continue
        points.sort(key=lambda point: point[1].median)
        x = [s.median for _, s in points]
        around = [[s.median - s.low for _, s in points], [s.high - s.median for _, s in points]]
        y = [row["kl"] for row, _ in points]
        style = "o-" if mine else "o"
        axes.errorbar(x, y, xerr=around, fmt=style, color=color, label=label, lw=1, elinewidth=0.6)
        for row, speed in points:
            name = f"{row['layer_bits']:.2f} bits" if mine else row["name"]
            at = (speed.median, row["kl"])
            axes.annotate(name, at, xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.set_yscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.set(xlabel="decode, tokens a second", ylabel="mean KL to the teacher, nats a token")
    axes.legend()
    h = found.header
    axes.set_title(f"SmolLM2-135M in rows of 768; {h['cpu']}, {h['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
