"""From a line to its record: the same on every machine, whatever else is answered beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..errors import EdgeDBError
from ..run.completion import Chunk
from ..run.engine import Model
from . import plain
from .defaults import Defaults
from .lines import Line
from .order import Beginnings
from .records import Record, failure

Stop = Callable[[], bool]


class Cancelled(Exception):
    """The run ends before this answer does."""


class Answering:
    """Answers lines with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._model, self._defaults = model, defaults
        self._beginnings = Beginnings()

    def __call__(self, line: Line, cancelled: Stop) -> Record:
        """The record of ``line``, which asks something; a failure's if that cannot be answered.

        Raises ``Cancelled``.
        """
        try:
            with self._beginnings.reading(line.beginning, cancelled) as is_read:
                chunks = plain.begin(self._model, self._defaults, line, cancelled)
                answer = list(_watched(chunks, is_read))
            return plain.record(line, self._defaults, answer)
        except Cancelled:
            raise
        except EdgeDBError as error:
            return failure(line, str(error))
        except Exception as error:  # one line's, whatever it is: the others go on
            return failure(line, f"{type(error).__name__}: {error}")


def _watched(chunks: Iterable[Chunk], is_read: Callable[[], None]) -> Iterator[Chunk]:
    """``chunks``; says when the prompt was read."""
    for chunk in chunks:
        is_read()
        if chunk.finish_reason == "cancelled":
            raise Cancelled
        yield chunk
