"""From a line to its record: the same on every machine, whatever else is answered beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import EdgeDBError
from ..run.engine import Model
from .defaults import Defaults
from .lines import Line
from .openai import OpenAI, refused
from .order import Beginnings
from .plain import Plain
from .records import Record, failure

Stop = Callable[[], bool]


class Cancelled(Exception):
    """The run ends before this answer does."""


class Answering:
    """Answers lines with a model. Threads share one."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self._plain, self._openai = Plain(model, defaults), OpenAI(model, defaults)
        self._beginnings = Beginnings()

    def __call__(self, line: Line, cancelled: Stop) -> Record:
        """The record of ``line``, which asks something; a failure's if that cannot be answered.

        Raises ``Cancelled``.
        """
        form = self._plain if line.url is None else self._openai
        try:
            with self._beginnings.reading(line.beginning, cancelled) as is_read:
                chunks, record = form.begin(line, cancelled)
                answer = list(_watched(chunks, is_read))
            if cancelled():  # it may have come to an early end
                raise Cancelled
            return record(answer)
        except Cancelled:
            raise
        except EdgeDBError as error:
            return failure(line, str(error)) if line.url is None else refused(line, error)
        except Exception as error:  # one line's, whatever it is: the others go on
            return failure(line, f"{type(error).__name__}: {error}")


def _watched(chunks: Iterable[Any], is_read: Callable[[], None]) -> Iterator[Any]:
    """``chunks``; says when the prompt was read."""
    for chunk in chunks:
        is_read()
        yield chunk
