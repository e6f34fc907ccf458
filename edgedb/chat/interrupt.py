"""The keyboard while an answer is written: Ctrl-C is a wish, all other keys wait."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish that can be asked for; the second one interrupts."""
    pressed = False

    def on_interrupt(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def silent_keys(*, lines: bool) -> Iterator[None]:
    """Show no ``^C`` in an answer, and nothing else that is typed; the keys wait for the prompt.

    ``lines``: what reads them next wants whole lines, so that only the ``^C`` goes.
    """
    try:
        import termios
    except ImportError:  # Windows, where prompt_toolkit reads the keys
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    silent = list(before)
    silent[3] &= ~(termios.ECHOCTL if lines else termios.ECHO | termios.ICANON)

    def apply(*_: Any) -> None:
        with suppress(OSError, termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)

    apply()
    if not lines:
        _mark_pastes(True)
    # A shell that had the terminal in between, after Ctrl-Z and fg, has set it as it likes it.
    previous = signal.signal(signal.SIGCONT, apply)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        if not lines:
            _mark_pastes(False)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _mark_pastes(on: bool) -> None:
    """Have the terminal mark what is pasted, or each line of it would be a message later."""
    sys.stdout.write(f"\x1b[?2004{'h' if on else 'l'}")
    sys.stdout.flush()
