"""What a conversation prints: answers as they come, remarks beside them, a bar while it reads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TextIO

import click

from ..session import Chunk, Progress
from ..ui import without_controls
from .wrapping import WordWrapper

ColorChoice = Literal["auto", "always", "never"]

# A bar for less than this would only flash.
_BAR_AFTER_SECONDS = 0.5
_BAR_EVERY_SECONDS = 0.1
_BAR_WIDTH = 30
_WIDTH = 80  # where there is no terminal to ask


def use_color(choice: ColorChoice, stream: TextIO) -> bool:
    """Whether remarks are dimmed; ``auto`` asks the terminal and ``NO_COLOR``."""
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Screen:
    """Where a conversation appears.

    ``rich``: a terminal whose cursor may be moved, so that answers are wrapped between words and a
    bar shows how far a prompt is read; otherwise answers appear as they are. ``apart``: everything
    but the answers goes to standard error.
    """

    def __init__(self, *, rich: bool, apart: bool, color: ColorChoice = "auto") -> None:
        self.rich = rich
        self._out = sys.stdout
        self._notes = sys.stderr if apart else sys.stdout
        self.color = use_color(color, self._notes)

    def width(self) -> int:
        """Columns of the terminal, now."""
        try:  # not shutil's, which believes COLUMNS, a value that no resize changes
            return os.get_terminal_size(self._out.fileno()).columns or _WIDTH
        except (OSError, ValueError):
            return _WIDTH

    def note(self, text: str) -> None:
        """A remark of the program: every line of it is wrapped by itself."""
        for line in text.split("\n"):
            self._dim(self._wrapped(without_controls(line)))

    def table(self, rows: Iterable[tuple[str, str]], *, indent: str = "  ") -> None:
        """Names and values in two columns; long values go on in theirs."""
        rows = list(rows)
        wide = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            start = f"{indent}{name:<{wide}}  "
            self._dim(self._wrapped(start + without_controls(value), " " * len(start)))

    def text(self, text: str) -> None:
        """A text of the conversation, printed again."""
        text = without_controls(text)
        if self.rich:
            wrapper = WordWrapper(self.width)
            text = wrapper.push(text) + wrapper.finish()
        self._write(self._notes, text.rstrip("\n") + "\n")

    def answer(self, start: Callable[[Progress], Iterator[Chunk]]) -> Chunk | None:
        """Print a streamed answer as it comes, end its line, and return the last chunk.

        ``start`` takes what it shall call while the prompt is read.
        """
        bar = ReadingBar(self)
        wrapper = WordWrapper(self.width) if self.rich else None
        last: Chunk | None = None
        ended = True
        try:
            for last in start(bar.show):
                bar.clear()
                text = without_controls(last.text) if self._out.isatty() else last.text
                if wrapper is not None:
                    text = wrapper.push(text)
                if text:
                    self._write(self._out, text)
                    ended = text.endswith("\n")
        finally:
            bar.clear()
            text = wrapper.finish() if wrapper is not None else ""
            if not ended or text:
                self._write(self._out, f"{text}\n")
        return last

    def draw(self, line: str) -> None:
        """Put ``line`` in the place of the terminal's last one; the cursor stays in it."""
        self._write(self._out, f"\r{click.style(line, dim=True) if self.color else line}\x1b[K")

    def _dim(self, line: str) -> None:
        self._write(self._notes, (click.style(line, dim=True) if self.color else line) + "\n")

    def _wrapped(self, line: str, margin: str = "") -> str:
        width = self.width() if self.rich else 0
        if len(line) <= width or width < len(margin) + 20:
            return line
        indent = line[: len(line) - len(line.lstrip())]
        start = line[: len(margin)] if margin else indent
        wrapper = WordWrapper(lambda: width - len(start))
        body = wrapper.push(line[len(start) :]) + wrapper.finish()
        return start + body.replace("\n", "\n" + (margin or indent))

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


class ReadingBar:
    """How much of a long prompt has been read: appears when it takes time, then goes away."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._started = time.monotonic()
        self._shown = False
        self._drawn = 0.0  # when

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total`` tokens are read."""
        now = time.monotonic()
        if not self._screen.rich or now - self._drawn < _BAR_EVERY_SECONDS:
            return
        if not self._shown and (now - self._started < _BAR_AFTER_SECONDS or done >= total):
            return
        self._shown, self._drawn = True, now
        text = f" {done:,} of {total:,} tokens read"
        room = min(_BAR_WIDTH, self._screen.width() - len(text) - 3)
        full = max(0, room) * done // total
        bar = f"[{'#' * full}{'.' * (room - full)}]" if room >= 5 else ""
        self._screen.draw((bar + text).strip()[: self._screen.width() - 1])

    def clear(self) -> None:
        """Take the bar away."""
        if self._shown:
            self._shown = False
            self._screen.draw("")
        self._started = float("inf")  # from now on the answer has the line
