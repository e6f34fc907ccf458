"""What the fuzzer must know of one kind of input."""

from __future__ import annotations

import abc
from pathlib import Path
from random import Random

Files = dict[str, bytes]  # path in the input's own folder -> content


class WrongMessage(Exception):
    """A refusal that is not one plain line."""


class Kind(abc.ABC):
    """Makes inputs and tries them. ``prepare`` runs once, before any worker is started."""

    name: str
    share: int  # of all inputs, in parts of the sum over all kinds

    def prepare(self, folder: Path) -> None:  # noqa: B027 - most have something to do, not all
        """Make what every input starts from."""

    def open(self) -> None:  # noqa: B027
        """What a worker needs once, after it was started."""

    @abc.abstractmethod
    def make(self, rng: Random) -> Files:
        """One input; the same for the same ``rng``. Never uses what it tests."""

    @abc.abstractmethod
    def use(self, files: Files, folder: Path) -> None:
        """Hand the input, written to ``folder`` where it must be, to its reader; use what comes.

        Returns if it was accepted, raises ``EdgeDBError`` if it was refused; anything else that is
        raised is a finding.
        """
