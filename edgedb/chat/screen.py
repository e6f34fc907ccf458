"""What a conversation prints: answers as they come, remarks beside them, a bar while it reads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TextIO

import click

from ..display import NAME_CHARS, one_line, printable
from ..run.session import Chunk, Progress
from .wrapping import WordWrapper

ColorChoice = Literal["auto", "always", "never"]

# A line for less than this would only flash.
_STATUS_AFTER_SECONDS = 0.5
_STATUS_EVERY_SECONDS = 0.1
_BAR_WIDTH = 30
_NARROWEST = 24  # column of a table
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
        self.markdown = False  # render answers, each once it is complete
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
        """A remark of the program, one line of the text that it may quote."""
        self._dim(self._wrapped(one_line(text)))

    def quote(self, text: str, first: str = "", later: str = "") -> None:
        """A text of several lines among the remarks, each behind its mark."""
        for number, line in enumerate(printable(text).split("\n")):
            self._dim(self._wrapped((later if number else first) + line))

    def table(self, rows: Iterable[tuple[str, str]]) -> None:
        """Names and values in two columns; in a narrow window each value goes below its name."""
        rows = [(one_line(name, NAME_CHARS), one_line(value)) for name, value in rows]
        margin = max((len(name) for name, _ in rows), default=0) + 4
        if self.rich and self.width() < margin + _NARROWEST:
            margin = 0
        for name, value in rows:
            if margin:
                self._dim(self._wrapped(f"  {name:<{margin - 4}}  {value}", " " * margin))
            else:
                self._dim(self._wrapped(f"  {name}"))
                self._dim(self._wrapped(f"    {value}"))

    def text(self, text: str) -> None:
        """A text of the conversation, printed again."""
        text = printable(text)
        if self.rich:
            wrapper = WordWrapper(self.width)
            text = wrapper.push(text) + wrapper.finish()
        self._write(self._notes, text.rstrip("\n") + "\n")

    def answer(self, start: Callable[[Progress], Iterator[Chunk]]) -> Chunk | None:
        """Print a streamed answer as it comes, end its line, and return the last chunk.

        ``start`` takes what it shall call while the prompt is read.
        """
        line = StatusLine(self)
        page: list[str] | None = [] if self.markdown and self.rich else None
        wrapper = WordWrapper(self.width) if self.rich else None
        last: Chunk | None = None
        ended = True
        try:
            for last in start(line.reading):
                text = printable(last.text) if self._out.isatty() else last.text
                if page is not None:
                    page.append(text)
                    line.show(f"{last.stats.completion_tokens:,} tokens written")
                    continue
                line.clear()
                if wrapper is not None:
                    text = wrapper.push(text)
                if text:
                    self._write(self._out, text)
                    ended = text.endswith("\n")
        finally:
            line.clear()
            text = wrapper.finish() if wrapper is not None else ""
            if not ended or text:
                self._write(self._out, f"{text}\n")
            if page:
                self._render("".join(page))
        return last

    def _render(self, page: str) -> None:
        """Print Markdown; only a whole answer has a form that later text cannot change."""
        from rich.console import Console
        from rich.markdown import Markdown
        from rich.segment import Segment, Segments

        system: Literal["standard"] | None = "standard" if self.color else None
        console = Console(
            file=self._out, width=self.width(), force_terminal=self.color, color_system=system
        )
        answer = Markdown(page.strip(), code_theme="ansi_dark", hyperlinks=False)
        # Cleaned once it is rendered: in Markdown &#x202e; is a character, too.
        cleaned = (Segment(printable(part.text), part.style) for part in console.render(answer))
        console.print(Segments(cleaned), end="")

    def draw(self, line: str) -> None:
        """Put ``line`` in the place of the terminal's last one; the cursor stays in it."""
        self._write(self._out, f"\r{click.style(line, dim=True) if self.color else line}\x1b[K")

    def _dim(self, line: str) -> None:
        self._write(self._notes, (click.style(line, dim=True) if self.color else line) + "\n")

    def _wrapped(self, line: str, margin: str = "") -> str:
        """``line`` in lines of the terminal's width, the later ones behind ``margin``."""
        width = self.width() if self.rich else len(line)
        if len(line) <= width:
            return line
        margin = margin or line[: len(line) - len(line.lstrip())]
        wrapper = WordWrapper(lambda: max(1, width - len(margin)))
        body = wrapper.push(line[len(margin) :]) + wrapper.finish()
        return line[: len(margin)] + body.replace("\n", "\n" + margin)

    def gap(self) -> None:
        """An empty line between an answer and the next prompt, where both are on one screen."""
        if self.rich:
            self._write(self._notes, "\n")

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


class StatusLine:
    """What goes on while nothing is printed: appears when it takes time, then goes away."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._next = time.monotonic() + _STATUS_AFTER_SECONDS
        self._shown = False

    def reading(self, done: int, total: int) -> None:
        """``done`` of ``total`` tokens of a prompt are read."""
        if done >= total and not self._shown:
            return
        text = f" {done:,} of {total:,} tokens read"
        room = min(_BAR_WIDTH, self._screen.width() - len(text) - 3)
        full = max(0, room) * done // total
        bar = f"[{'#' * full}{'.' * (room - full)}]" if room >= 5 else ""
        self.show((bar + text).strip())

    def show(self, text: str) -> None:
        """Show ``text`` in place of what was there."""
        now = time.monotonic()
        if self._screen.rich and now >= self._next:
            self._next, self._shown = now + _STATUS_EVERY_SECONDS, True
            self._screen.draw(text[: self._screen.width() - 1])

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            self._screen.draw("")
