"""What becomes of an answer's tokens: chunks of text, and how many there were in what time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ..text.stopping import StopMatcher
from ..text.tokenizer import Tokenizer
from .completion import Chunk, FinishReason, Stats, TokenLogprobs
from .speculative import Guesser


class Writer:
    """Writes one answer; for one thread at a time, whichever that is."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: Sequence[str]) -> None:
        """``stop``: texts of which the first ends the answer."""
        self.stats = Stats(prompt_tokens=len(prompt))
        self._detokenizer = tokenizer.stream(after=prompt)
        self._matcher = StopMatcher(stop)
        self._guesser: Guesser | None = None
        self._started = time.perf_counter()

    def begin(self, prompt_seconds: float, guesser: Guesser | None) -> None:
        """The prompt was read in so many seconds. ``guesser``: who knows how many guesses were
        right."""
        self.stats.prompt_seconds, self._guesser = prompt_seconds, guesser
        self._started = time.perf_counter()

    def write(self, token: int, logprobs: TokenLogprobs | None = None) -> Chunk:
        """The chunk of one more token: the last one, if a stop text is complete."""
        self.stats.completion_tokens += 1
        text = self._matcher.push(self._detokenizer.push(token))
        reason: FinishReason | None = "stop" if self._matcher.stopped else None
        return Chunk(text, token, reason, self._figures(), logprobs)

    def end(self, reason: FinishReason) -> Chunk:
        """The last chunk, with what was held back."""
        tail = self._matcher.push(self._detokenizer.finish()) + self._matcher.finish()
        return Chunk(tail, None, reason, self._figures())

    def _figures(self) -> Stats:
        stats = self.stats
        if self._guesser is not None:
            stats.drafted_tokens = self._guesser.drafted
            stats.accepted_tokens = self._guesser.accepted
        stats.decode_seconds = time.perf_counter() - self._started
        return replace(stats)
