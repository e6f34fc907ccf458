"""A folder for the time of one run, which a run that is killed does not leave for good."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgedb.errors import EdgeDBError


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """``path`` as an empty folder; in the end it is removed, unless it has another name by then.

    What a killed run left there is removed first. Raises ``EdgeDBError`` if the folder cannot be
    made or another process is using it.
    """
    fd = _make(path)
    try:
        yield path
    finally:
        if _is_open_as(fd, path):
            shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _make(path: Path) -> int:
    """Make ``path``, lock it, and empty it; returns the descriptor that holds the lock."""
    while True:
        fd = -1
        try:
            path.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_as(fd, path):  # not removed by its last user before it was locked
                for left in list(os.scandir(path)):
                    if left.is_dir(follow_symlinks=False):
                        shutil.rmtree(left)
                    else:
                        os.unlink(left)
                return fd
            os.close(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            used = isinstance(error, BlockingIOError)
            reason = "another process is using this folder" if used else error.strerror
            raise EdgeDBError(f"{path}: {reason}") from None


def _is_open_as(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
