"""Files on the disk: read as a text or mapped into memory, replaced in one step when written."""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from . import descriptors
from .errors import EdgeDBError, FormatError

# Where the package lies in its source tree; in an installation, a folder without a pyproject.toml.
SOURCE_TREE = Path(__file__).resolve().parents[1]

_TEMPORARY = "~edgedb"  # how the names of files end that are being written


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


def size_text(n_bytes: float) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


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
    return os.open(path, os.O_RDONLY | descriptors.BINARY | descriptors.NOT_WAITING)


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


@contextmanager
def opened_whole(path: Path, refuse: Callable[[os.stat_result], str]) -> Iterator[tuple[int, int]]:
    """A descriptor of a regular file that is not empty, and how many bytes it has.

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
        yield fd, info.st_size
    finally:
        os.close(fd)


def map_file(path: Path, refuse: Callable[[os.stat_result], str]) -> tuple[mmap.mmap, int]:
    """The bytes of a file as ``opened_whole`` takes it, read-only, and how many they are."""
    with opened_whole(path, refuse) as (fd, size):
        try:
            return mmap.mmap(fd, size, access=mmap.ACCESS_READ), size
        except OSError as error:
            raise FormatError(f"cannot be mapped into memory: {error.strerror}") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` once it is complete and on the disk.

    After an error, of whoever writes too, ``path`` is as it was. What a writer left that was killed
    is removed by the next one. Raises ``OSError``.
    """
    _remove_abandoned(path)
    fd, temporary = _new_temporary(path)
    try:
        with open(fd, "wb") as file:  # the lock goes with it, so after the rename
            yield file
            file.flush()
            os.fsync(fd)
            if descriptors.OPEN_FILES_MOVE:
                os.replace(temporary, path)
        if not descriptors.OPEN_FILES_MOVE:
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _new_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, open and locked: so others know that its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        # For the owner alone: a conversation is private, whatever the umask.
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | descriptors.BINARY, 0o600)
        with suppress(OSError):  # a file system without locks: nobody will take it for abandoned
            descriptors.lock(fd, wait=True)
        if os.fstat(fd).st_nlink:
            return fd, temporary
        os.close(fd)  # taken for abandoned before it was locked


def _remove_abandoned(path: Path) -> None:
    begin = f".{path.name}."
    name = re.compile(re.escape(begin) + "[0-9a-f]{8}" + re.escape(_TEMPORARY))
    with suppress(OSError):
        for found in filter(name.fullmatch, os.listdir(path.parent)):
            with suppress(OSError):  # locked: another one is at work
                fd = os.open(
                    path.with_name(found), os.O_RDWR | descriptors.NO_LINK | descriptors.NOT_WAITING
                )
                try:
                    descriptors.lock(fd)
                    if descriptors.OPEN_FILES_MOVE:
                        os.unlink(path.with_name(found))
                finally:
                    os.close(fd)
                if not descriptors.OPEN_FILES_MOVE:
                    os.unlink(path.with_name(found))
