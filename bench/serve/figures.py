"""What was seen of answers, and the figures that are made of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

Span = tuple[float, float]  # seconds of one clock
_RATIO = "worst stream's p99 ratio"


@dataclass
class Answer:
    """A streamed answer as its reader saw it."""

    number: int  # of the request; the same one asks the same
    stream: int  # of the load, whose answers follow each other
    sent: float = 0.0
    stamps: list[float] = field(default_factory=list)  # when each piece of text came
    text: str = ""
    tokens: int | None = None  # as the server counts them; None: it did not end
    error: str = ""

    @property
    def gaps(self) -> list[Span]:
        """From each piece to the next one."""
        return list(itertools.pairwise(self.stamps))


@dataclass(frozen=True)
class Load:
    """What a server was given for a while, and what it gave."""

    name: str
    window: Span
    answers: list[Answer]
    intruder: list[Span] = field(default_factory=list)  # while one was being read
    health: list[float] = field(default_factory=list)  # seconds of each look
    is_closed: bool = True  # its streams lasted from begin to end
    client_seconds: float = 0.0  # of processor time, of who asks
    server_seconds: float | None = None  # and of who answers, if its process is known
    same: tuple[int, int] | None = None  # answers that are those given alone, of how many


def percentiles(seconds: Iterable[float]) -> tuple[float, float, float]:
    """Milliseconds: p50, p95, p99; not numbers where there are none."""
    values = np.array(list(seconds)) * 1000
    if not len(values):
        return (float("nan"),) * 3
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return float(p50), float(p95), float(p99)


def summary(load: Load) -> dict[str, object]:
    """The figures of a load, as JSON: times in milliseconds, of what came within the window."""
    begin, end = load.window
    answers = load.answers
    pieces = [stamp for a in answers for stamp in a.stamps if begin <= stamp <= end]
    gaps = [(gap, a.stream) for a in answers for gap in a.gaps if begin <= gap[1] <= end]
    found: dict[str, object] = {
        "load": load.name,
        "seconds": end - begin,
        "answers": sum(a.tokens is not None for a in answers),
        "errors": sorted({a.error for a in answers if a.error}),
        "failed": sum(bool(a.error) for a in answers),
        "tokens a second": len(pieces) * _tokens_a_piece(answers) / (end - begin),
        "of a stream": _of_a_stream(answers),
        "client cores": load.client_seconds / (end - begin),
        "server cores": load.server_seconds and load.server_seconds / (end - begin),
        "first token": percentiles(a.stamps[0] - a.sent for a in answers if a.stamps),
        "between tokens": percentiles(b - a for (a, b), _ in gaps),
        "slowest over fastest": _evenness(answers, load.window) if load.is_closed else None,
        "health max": 1000 * max(load.health) if load.health else None,
        "same": load.same,
    }
    if load.intruder:
        beside = [one for one in gaps if _overlaps(one[0], load.intruder)]
        without = [one for one in gaps if not _overlaps(one[0], load.intruder)]
        found["beside the intruder"] = percentiles(b - a for (a, b), _ in beside)
        found["without it"] = percentiles(b - a for (a, b), _ in without)
        found[_RATIO] = _worst(beside, without)
    return found


def _tokens_a_piece(answers: Sequence[Answer]) -> float:
    """Not always one: a character may be several tokens, and a server may send several at once."""
    whole = [a for a in answers if a.tokens and a.stamps]
    pieces = sum(len(a.stamps) for a in whole)
    return sum(a.tokens or 0 for a in whole) / pieces if pieces else 1.0


def _of_a_stream(answers: Sequence[Answer]) -> float:
    """Tokens a second of one stream, between its first and its last: without its prompts."""
    gaps = [end - begin for a in answers for begin, end in a.gaps]
    return len(gaps) * _tokens_a_piece(answers) / sum(gaps) if gaps else float("nan")


def _evenness(answers: Sequence[Answer], window: Span) -> float:
    """Time a token of the slowest stream over that of the fastest."""
    counts: dict[int, int] = {}
    for a in answers:
        n = sum(window[0] <= stamp <= window[1] for stamp in a.stamps)
        counts[a.stream] = counts.get(a.stream, 0) + n
    least = min(counts.values(), default=0)
    return max(counts.values()) / least if least else float("inf")


def _overlaps(gap: Span, spans: Sequence[Span]) -> bool:
    return any(gap[0] < end and begin < gap[1] for begin, end in spans)


def _worst(beside: list[tuple[Span, int]], without: list[tuple[Span, int]]) -> float:
    ratios = []
    for stream in {stream for _, stream in beside}:
        both = []
        for gaps in (beside, without):
            both.append(percentiles(b - a for (a, b), of in gaps if of == stream)[2])
        ratios.append(both[0] / both[1])
    return max((ratio for ratio in ratios if ratio == ratio), default=float("nan"))


def line(server: str, found: dict[str, object]) -> str:
    """``summary`` for people."""

    def three(name: str) -> str:
        values = found[name]
        assert isinstance(values, tuple)
        return " / ".join(f"{value:.0f}" for value in values)

    parts = [
        f"{server}, {found['load']}: {found['tokens a second']:.1f} tokens/s",
        f"{found['of a stream']:.1f} of one while it is written",
        f"first token {three('first token')} ms",
        f"between tokens {three('between tokens')} ms (p50 / p95 / p99)",
    ]
    if found["slowest over fastest"] is not None:
        parts.append(f"fastest stream {found['slowest over fastest']:.2f} times the slowest")
    if "beside the intruder" in found:
        parts.append(
            f"between tokens beside the intruder {three('beside the intruder')} ms, without "
            f"{three('without it')} ms, worst stream's p99 {found[_RATIO]:.2f} times its own"
        )
    parts.append(f"client {found['client cores']:.2f} cores")
    if found["server cores"] is not None:
        parts.append(f"server {found['server cores']:.2f}")
    if found["health max"] is not None:
        parts.append(f"/health at most {found['health max']:.0f} ms")
    if isinstance(same := found["same"], tuple):
        parts.append(f"same as alone {same[0]} of {same[1]}")
    if found["failed"]:
        parts.append(f"{found['failed']} failed: {found['errors']}")
    return "; ".join(parts)
