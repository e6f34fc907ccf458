"""What passes a model makes, for tests of who shares them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from edgedb.model.network import Network
from edgedb.run.loaded import LoadedModel

_SECONDS = 10.0  # after which nobody is expected any more


class Passes:
    """Notes every pass. ``held`` is one that goes on only when so many others wait for the next:
    whoever is to share passes has handed in its turn by then, on however slow a machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
        self.read: list[list[int]] = []  # of each, how many tokens of each sequence
        self.held: tuple[int, int] | None = None  # its number, from 0, and how many others
        read = Network.read

        def note(network: Network, readings: Any, state: Any) -> Any:
            number = len(self.read)
            self.read.append([len(one.tokens) for one in readings])
            if self.held is not None and self.held[0] == number:
                end = time.monotonic() + _SECONDS
                while len(model.loop._waiting) < self.held[1] and time.monotonic() < end:
                    time.sleep(0.001)
            return read(network, readings, state)

        monkeypatch.setattr(Network, "read", note)

    def hold(self, number: int, others: int) -> None:
        """Begin anew, and hold pass ``number``."""
        self.read.clear()
        self.held = number, others

    @property
    def most(self) -> int:
        """Sequences of the largest one."""
        return max(map(len, self.read))
