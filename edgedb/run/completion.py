"""What an answer is made of: chunks while it streams, a completion at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Stats:
    """How much was read and written, and how long it took."""

    prompt_tokens: int = 0  # tokens of the prompt
    read_tokens: int = 0  # of these, the ones that the cache did not hold yet
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0  # guessed by prompt lookup or a draft, and read
    accepted_tokens: int = 0  # of these, the ones that were right

    @property
    def accepted_share(self) -> float:
        """The share of guesses that were right."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens a second, of those that were read now."""
        return self.read_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_per_second(self) -> float:
        """Decoded tokens a second."""
        return self.completion_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Logprob:
    """A token and the natural logarithm of its probability.

    The probability is the model's own: before penalties, bias, temperature and everything else.
    """

    token: int
    text: str  # of this token alone; U+FFFD where it is part of a character
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(Logprob):
    """The token that was chosen, and the most likely ones at its place, most likely first."""

    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """One step of a streamed answer.

    ``text`` may be empty: a token can end inside a character, or text can be held back because it
    may turn out to be a stop string. The last chunk alone has a ``finish_reason``.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None
    stats: Stats
    logprobs: TokenLogprobs | None = None  # of ``token``, if they were asked for
    index: int = 0  # which of several answers


@dataclass(frozen=True)
class Completion:
    """A whole answer; ``tokens`` are its ids, without the one that ended it."""

    text: str
    tokens: list[int] = field(repr=False)
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[TokenLogprobs] | None = field(default=None, repr=False)  # one for each token


def collect(chunks: Iterable[Chunk]) -> Completion:
    """Run a stream to its end."""
    text: list[str] = []
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    last: Chunk | None = None
    for last in chunks:
        text.append(last.text)
        if last.token is not None:
            tokens.append(last.token)
        if last.logprobs is not None:
            logprobs.append(last.logprobs)
    assert last is not None and last.finish_reason is not None, "a stream ends with a finish reason"
    return Completion("".join(text), tokens, last.finish_reason, last.stats, logprobs or None)
