"""How much was read and written, as OpenAI's clients, llama-server's and Ollama's want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..run.completion import Stats


class Usage:
    """Counts of all answers to one request."""

    def __init__(self, n: int = 1) -> None:
        """n: answers to each prompt, which is counted once."""
        self._n = n
        self.of: dict[int, Stats] = {}  # by Chunk.index, the latest

    @property
    def prompt_tokens(self) -> int:
        return sum(s.prompt_tokens for i, s in self.of.items() if i % self._n == 0)

    @property
    def cached_tokens(self) -> int:
        """Of them, those that had been read before."""
        first = (s for i, s in self.of.items() if i % self._n == 0)
        return sum(s.prompt_tokens - s.read_tokens for s in first)

    @property
    def completion_tokens(self) -> int:
        return sum(s.completion_tokens for s in self.of.values())

    def openai(self) -> dict[str, Any]:
        """The ``usage`` of chats and completions."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def timings(stats: Stats) -> Mapping[str, Any]:
    """The ``timings`` of one answer, by llama-server's names."""
    read, written = stats.read_tokens, stats.completion_tokens
    found = {
        "cache_n": stats.prompt_tokens - read,
        "prompt_n": read,
        "prompt_ms": 1000 * stats.prompt_seconds,
        "prompt_per_token_ms": 1000 * stats.prompt_seconds / max(read, 1),
        "prompt_per_second": stats.prompt_per_second,
        "predicted_n": written,
        "predicted_ms": 1000 * stats.decode_seconds,
        "predicted_per_token_ms": 1000 * stats.decode_seconds / max(written, 1),
        "predicted_per_second": stats.decode_per_second,
    }
    if stats.drafted_tokens:
        found |= {"draft_n": stats.drafted_tokens, "draft_n_accepted": stats.accepted_tokens}
    return {name: round(value, 3) for name, value in found.items()}
