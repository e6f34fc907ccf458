"""What tests of guessed tokens share, whoever guesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgedb.model.network import Network, Reading
from edgedb.run.loaded import LoadedModel
from edgedb.run.speculative import find_continuation

PROMPT = [5, 9, 40, 17, 23, 8, 60, 61, 62, 5, 9, 40, 17]


def rows_of_passes(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the passes of ``model`` itself, not of its draft, as they come."""
    seen: list[int] = []
    read = Network.read

    def counted(self: Network, readings: list[Reading], state: Any) -> Any:
        if self is model.network:
            seen.append(sum(len(reading.tokens) for reading in readings))
        return read(self, readings, state)

    monkeypatch.setattr(Network, "read", counted)
    return seen


def repeating(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Makes the model repeat its context in most places, as a summary does; a draft does not know
    of it."""
    found = find_continuation(ids, 1)
    if found and len(ids) % 7:
        logits[found[0]] += 400
    return logits
