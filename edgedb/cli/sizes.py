"""Bytes, and bytes a second, as they are typed."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Size(click.ParamType):
    """Bytes, written ``900MB`` or ``1.2GB``; with a ``suffix`` such as ``/s`` behind them."""

    def __init__(self, name: str, suffix: str, examples: str) -> None:
        self.name, self._suffix, self._examples = name, suffix, examples

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        form = rf"([0-9]+(?:\.[0-9]+)?) ?([kMG]?)B?(?:{re.escape(self._suffix)})?"
        found = re.fullmatch(form, value)
        if not found:
            self.fail(f"{value!r} is no {self.name}, such as {self._examples}", parameter, context)
        return int(float(found[1]) * _UNITS[found[2]])


SIZE = Size("size", "", "900MB or 1.2GB")
SPEED = Size("speed", "/s", "17GB/s")
