"""Progress and remarks of long work, on standard error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointWarning

if TYPE_CHECKING:
    from rich.console import Console


def new_console() -> Console:
    """Standard error for progress and remarks, where ``[x]`` in a name is no markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def shown_warnings(show: Callable[[str], None]) -> Iterator[None]:
    """What a checkpoint makes one wonder about is shown as a line, each time."""

    def show_one(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, CheckpointWarning):
            show(f"warning: {message}")
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", CheckpointWarning)
        warnings.showwarning = show_one
        yield
