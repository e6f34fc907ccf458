"""The edges of a command: whatever ends it, no traceback but a line on standard error, and 2.

A standard stream may be closed, or its disk full; memory and threads may have limits; Ctrl-C may
come. None of these is a fault of the program, and all of them are met here, for ``edgedb`` and the
commands of ``tools`` alike. What is a fault keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

from ..display import one_line
from ..errors import EdgeDBError

_NAMES = ("stdin", "stdout", "stderr")
_TITLES = ("standard input", "standard output", "standard error")
# What the system's loader of shared libraries says, and Python of a call that got no memory.
_NO_ROOM = ("failed to map segment", "annot allocate memory")


@contextmanager
def command_line(prefix: str) -> Iterator[None]:
    """Run a command inside: its errors become a line that begins with ``prefix``, and exit code 2;
    Ctrl-C becomes 130, and a reader that went away 1, both silently."""
    _prepare_streams()
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where an error still has a line
    except (Exception, KeyboardInterrupt) as error:
        _end(prefix, error)
    finally:
        _let_go()


def meet_import_errors(prefix: str) -> None:
    """The same for what comes up while the module of a command is still being imported."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            _end(prefix, error)
        except SystemExit as status:
            os._exit(int(status.code or 0))
        except BaseException:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = end


def _end(prefix: str, error: BaseException) -> NoReturn:
    """Leave with the status and the line of ``error``, or raise it again if it is a fault."""
    if isinstance(error, KeyboardInterrupt):
        raise SystemExit(130) from None
    if isinstance(error, BrokenPipeError):
        raise SystemExit(1) from None
    message = _message(error)
    if message is None:
        raise error
    with suppress(OSError, ValueError):  # nobody reads standard error
        print(f"{prefix}: {one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None


def _message(error: BaseException) -> str | None:
    """What to say of an error that is no fault of the program."""
    if isinstance(error, EdgeDBError):
        return str(error)
    chain = list(_chain(error))
    said = " ".join(map(str, chain))
    if isinstance(error, MemoryError) or any(words in said for words in _NO_ROOM):
        return "not enough memory; take a smaller model or context, or raise the limit (ulimit -v)"
    if "can't start new thread" in said:
        return "the system lets this process start no more threads; raise ulimit -u or -v"
    if isinstance(error, OSError) and error.strerror:  # those of files are met where they open
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Output(io.FileIO):
    """Standard output or error, whose end may be full; only a reader that went away is an
    ``OSError``, for which callers have their ways."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "wb", closefd=False)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            return _lost(self.fileno(), data, str(error.strerror))


class _Closed(io.RawIOBase):
    """A standard stream that was closed when the process began."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return self._fd == 0

    def writable(self) -> bool:
        return self._fd > 0

    def readinto(self, buffer: Any) -> NoReturn:
        raise EdgeDBError(f"{_TITLES[self._fd]} is closed")

    def write(self, data: Any) -> int:
        return _lost(self._fd, data, "it is closed")


def _lost(fd: int, data: Any, reason: str) -> int:
    if fd == 2:  # what cannot be said is no reason to end
        return len(data)
    raise EdgeDBError(f"{_TITLES[fd]} cannot be written: {reason}")


def _prepare_streams() -> None:
    for fd, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:
            # The next file that is opened would become this stream for whatever writes to its
            # number: an error message in a model file.
            _occupy(fd)
            setattr(sys, name, _text_stream(_Closed(fd)))
        elif fd and _is_plain(stream, fd):
            stream.flush()
            setattr(sys, name, _text_stream(_Output(fd), stream))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _is_plain(stream: Any, fd: int) -> bool:
    """Whether it is the one that the interpreter made, no test's or caller's."""
    raw = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))
    return type(raw) is io.FileIO and raw.fileno() == fd


def _occupy(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)


def _text_stream(raw: io.RawIOBase, like: Any = None) -> io.TextIOWrapper:
    buffered = io.BufferedWriter(raw) if raw.writable() else io.BufferedReader(raw)
    return io.TextIOWrapper(
        buffered,
        encoding="utf-8" if like is None else like.encoding,
        errors="replace",  # a locale without a character is no reason to end
        line_buffering=like is not None and like.line_buffering,
        write_through=like is not None and like.write_through,
    )


def _let_go() -> None:
    """Leave the interpreter nothing to write at its end: it would fail once more, and complain."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, EdgeDBError):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
