"""What was meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

Options = ParamSpec("Options")
T = TypeVar("T")


def suggestion(word: str, known: Sequence[str], mark: str = "") -> str:
    """`` (did you mean ...?)`` or nothing."""
    longer = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = longer or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {mark}{near[0]}?" if near else ""


def no_option(name: str, known: Sequence[str]) -> TypeError:
    """What to raise for a keyword that is none of ``known``."""
    return TypeError(f"there is no option {name!r}{suggestion(name, known)}")


def hinted(function: Callable[Options, T]) -> Callable[Options, T]:
    """``function``, whose ``TypeError`` about an option that there is not names the one meant."""
    known = [name for name in function.__annotations__ if name != "return"]

    @wraps(function)
    def call(*args: Options.args, **options: Options.kwargs) -> T:
        for name in options:
            if name not in known:
                raise no_option(name, known)
        return function(*args, **options)

    return call
