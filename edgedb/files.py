"""Files on the disk: read as a text or mapped into memory, replaced in one step when written."""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import EdgeDBError, FormatError


def user_folder(variable: str, *default: str) -> Path | None:
    """The folder that an environment variable names, or ``default`` in the user's home.

    None for a user without a home: no ``HOME`` and no entry among the users, as in some containers.
    """
    if os.environ.get(variable):
        return Path(os.environ[variable])
    try:
        return Path.home().joinpath(*default)
    except RuntimeError:
        return None


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. Raises ``EdgeDBError`` if it is none or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EdgeDBError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EdgeDBError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _open(path: Path) -> int:
    # A FIFO would block the open for ever; non-blocking, it is opened and found to be no file.
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read. Raises ``EdgeDBError`` if it is none (a FIFO would block for ever, a
    device may have no end) or cannot be read.
    """
    try:
        fd = _open(path)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise EdgeDBError(f"{path} is not a regular file")
            with open(fd, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(fd)
    except OSError as error:
        raise EdgeDBError(f"{path}: {error.strerror}") from None


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file. Raises ``EdgeDBError`` if it is none, is larger than
    ``limit_bytes`` or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise EdgeDBError(f"{path} is larger than {limit_bytes:,} bytes")
    return content


def map_file(path: Path, refuse: Callable[[os.stat_result], str]) -> tuple[mmap.mmap, int]:
    """The bytes of a regular file, read-only, and how many they are.

    ``refuse`` says what is wrong with something that is empty or no regular file. Raises
    ``FormatError`` with that, or if there is no such file or it cannot be opened.
    """
    try:
        fd = _open(path)
    except FileNotFoundError:
        raise FormatError("no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"cannot be opened: {reason}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size == 0:
            raise FormatError(refuse(info))
        return mmap.mmap(fd, info.st_size, access=mmap.ACCESS_READ), info.st_size
    except OSError as error:
        raise FormatError(f"cannot be mapped into memory: {error.strerror}") from None
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` once it is complete and on the disk.

    After an error, of whoever writes too, ``path`` is as it was. Raises ``OSError``.
    """
    # Made for the owner alone: a conversation is private, whatever the umask.
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
