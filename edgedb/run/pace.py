"""How many tokens to read at once when somebody may want to interrupt."""

from __future__ import annotations

# A cancel is noticed within this time and one step's growth of it: well inside 100 ms.
TARGET_SECONDS = 0.04
_GROWTH = 4.0


class Pace:
    """Finds the number of tokens that take ``TARGET_SECONDS`` to read, from how long others took.

    It begins with one token, because a large model on a slow CPU may need a second for ten. A
    single token cannot be interrupted.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens = 1.0

    @property
    def batch(self) -> int:
        """Tokens to read next, 1 to the most that go at once."""
        return int(self._tokens)

    def measured(self, n_tokens: int, seconds: float) -> None:
        """``n_tokens`` took so long."""
        fitting = n_tokens * TARGET_SECONDS / max(seconds, 1e-6)
        grown = max(self._tokens, n_tokens) * _GROWTH
        self._tokens = min(max(1.0, min(fitting, grown)), float(self._most))
