"""What the server has done, as Prometheus reads it."""

from __future__ import annotations

import bisect
import threading
from collections import Counter

from ..run.completion import Stats
from .desk import Desk
from .served import Served

_FIRST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WHOLE_SECONDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


class Histogram:
    """Counts of seconds by size."""

    def __init__(self, name: str, about: str, bounds: tuple[float, ...]) -> None:
        self._name, self._about, self._bounds = name, about, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    def lines(self) -> list[str]:
        found, total = _head(self._name, self._about, "histogram"), 0
        with self._lock:
            counts = list(self._counts)
        for bound, count in zip((*self._bounds, "+Inf"), counts, strict=True):
            total += count
            found.append(f'{self._name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{self._name}_sum {self._sum:.6f}", f"{self._name}_count {total}"]


class Metrics:
    """Counters of one server; threads share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._answers: Counter[str] = Counter()
        self._prompt = self._cached = self._written = 0
        self._drafted = self._accepted = 0
        self._prompt_seconds = self._decode_seconds = 0.0
        self.first = Histogram(
            "edgedb_first_token_seconds", "From a request to its first token.", _FIRST_SECONDS
        )
        self.whole = Histogram(
            "edgedb_answer_seconds", "From a request to its end.", _WHOLE_SECONDS
        )

    def request(self, route: str, status: int) -> None:
        """A request to ``route`` got ``status``."""
        with self._lock:
            self._requests[route, status] += 1

    def answer(self, reason: str | None, stats: Stats) -> None:
        """An answer ended; ``reason`` None: by an error."""
        with self._lock:
            self._answers[reason or "error"] += 1
            self._prompt += stats.prompt_tokens
            self._cached += stats.prompt_tokens - stats.read_tokens
            self._written += stats.completion_tokens
            self._drafted += stats.drafted_tokens
            self._accepted += stats.accepted_tokens
            self._prompt_seconds += stats.prompt_seconds
            self._decode_seconds += stats.decode_seconds

    def text(self, desk: Desk, served: Served | None) -> str:
        """All of it, in Prometheus' text format."""
        name, lines = "edgedb_requests_total", []
        with self._lock:
            lines += _head(name, "Requests by route and status.", "counter")
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'{name}{{route="{route}",status="{status}"}} {count}')
            name = "edgedb_answers_total"
            lines += _head(name, "Answers by how they ended.", "counter")
            for reason in sorted({"stop", "length", "cancelled", "error", *self._answers}):
                lines.append(f'{name}{{reason="{reason}"}} {self._answers[reason]}')
            for name, about, value in (
                ("prompt_tokens", "Tokens of prompts.", self._prompt),
                ("cached_tokens", "Of these, the ones that were not read again.", self._cached),
                ("completion_tokens", "Tokens written.", self._written),
                ("drafted_tokens", "Guesses that were read.", self._drafted),
                ("accepted_tokens", "Of these, the ones that were right.", self._accepted),
                ("prompt_seconds", "Time in which prompts were read.", self._prompt_seconds),
                ("decode_seconds", "Time in which answers were written.", self._decode_seconds),
            ):
                lines += _value(f"edgedb_{name}_total", about, "counter", value)
            lines += [*self.first.lines(), *self.whole.lines()]
        lines += _value("edgedb_running", "Answers being made.", "gauge", desk.running)
        waiting = desk.waiting + (served.model.admission.waiting if served else 0)
        lines += _value("edgedb_waiting", "Requests that wait for a turn.", "gauge", waiting)
        lines += _value("edgedb_open", "Requests not yet sent in whole.", "gauge", desk.open)
        if served is not None:
            kept, held = len(served.model.prefixes), served.model.admission.held_pages
            about = "Pages of 256 positions kept for later prompts."
            lines += _value("edgedb_kept_pages", about, "gauge", kept)
            about = "Pages that answers hold now."
            lines += _value("edgedb_held_pages", about, "gauge", held)
        return "\n".join(lines) + "\n"


def _head(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _value(name: str, about: str, kind: str, value: float) -> list[str]:
    shown = f"{value:.6f}" if isinstance(value, float) else str(value)
    return [*_head(name, about, kind), f"{name} {shown}"]
