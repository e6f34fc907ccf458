"""A program in a pseudo-terminal: send keys, wait for text."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from types import TracebackType


class Terminal:
    """Runs ``command`` with a terminal of 24 lines as its input and output.

    ``text`` is all that the program wrote; ``expect`` moves ``position`` behind what it found.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        timeout: float = 10,
        columns: int = 80,
    ) -> None:
        self.timeout = timeout
        self.text = ""
        self.position = 0
        self._fd, child = pty.openpty()
        self.resize(24, columns)
        environment = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **env}
        self._process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
            # The terminal must be the controlling one, so that Ctrl-C sends a signal.
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size, as dragging its corner does."""
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, keys: str) -> None:
        """Type ``keys``; ``\\r`` is Enter, ``\\x03`` Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Send SIGINT to the program, whatever mode the terminal is in."""
        os.killpg(self._process.pid, signal.SIGINT)

    def resume(self) -> None:
        """Send SIGCONT to the program, as ``fg`` does."""
        os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed by itself."""
        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    @echoes.setter
    def echoes(self, on: bool) -> None:
        attributes = termios.tcgetattr(self._fd)
        attributes[3] = attributes[3] | termios.ECHO if on else attributes[3] & ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSANOW, attributes)

    def expect(self, pattern: str) -> str:
        """Wait until ``pattern`` (a regular expression) appears; returns the text up to its end."""
        deadline = time.monotonic() + self.timeout
        while True:
            found = re.compile(pattern).search(self.text, self.position)
            if found:
                seen = self.text[self.position : found.end()]
                self.position = found.end()
                return seen
            if not self._read(deadline):
                raise AssertionError(f"no {pattern!r} in {self.text[self.position :]!r}")

    def skip(self) -> None:
        """Move ``position`` behind everything that is there already."""
        while select.select([self._fd], [], [], 0)[0] and self._read(time.monotonic()):
            pass
        self.position = len(self.text)

    def finish(self) -> int:
        """Wait for the program to end; its exit code."""
        deadline = time.monotonic() + self.timeout
        while self._read(deadline):
            pass
        return self._process.wait(timeout=max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self._fd, 65536) if ready else b""
        except OSError:  # the program has closed its side
            data = b""
        self.text += data.decode("utf-8", "replace")
        return bool(data)
