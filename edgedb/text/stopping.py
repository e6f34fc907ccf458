"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on up to the first stop string, none of which is empty, however the text is cut
    into pieces.

    A tail that may be the beginning of a stop string is held back until it is decided. If several
    stop strings occur, the one that is complete first counts. The stop string itself is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; returns what is certainly part of the answer."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops]
        matches = [(end, start) for end, start in found if start >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return text[: min(matches)[1]]
        kept = len(text) - self._undecided(text)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """The text still held back, now that no more comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
