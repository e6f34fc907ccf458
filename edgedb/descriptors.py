"""Open files where systems differ: locks, reading and writing at a place, moving what is open.

POSIX has all of it. Windows locks with a call of its own, has no ``pread``, turns line ends unless
told not to, and moves or deletes nothing that is open.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OPEN_FILES_MOVE = os.name == "posix"

# Those that Windows lacks have no meaning there.
BINARY = getattr(os, "O_BINARY", 0)
NOT_WAITING = getattr(os, "O_NONBLOCK", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def lock(fd: int, *, wait: bool = False) -> None:
    """Have the file for this process alone, until it is closed.

    Raises ``BlockingIOError`` if another one has it and we shall not wait, ``OSError`` where files
    cannot be locked.
    """
    if sys.platform == "win32":
        _lock_on_windows(fd, wait)
    elif fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def claim(fd: int) -> bool:
    """``lock`` without waiting: False if another process has the file. Where files cannot be locked
    it counts as ours."""
    try:
        lock(fd)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def read_at(fd: int, size: int, offset: int) -> bytes:
    """At most ``size`` bytes from ``offset`` on. Raises ``OSError``."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _place:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """How many bytes of ``data`` were written at ``offset``. Raises ``OSError``."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _place:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


_place = threading.Lock()  # a descriptor has one, whoever reads


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where a folder can be opened. Raises ``OSError``."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _FAIL_IMMEDIATELY, _EXCLUSIVE, _LOCK_VIOLATION = 1, 2, 33

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        )

    _lock_file = ctypes.WinDLL("kernel32", use_last_error=True).LockFileEx
    _lock_file.argtypes = [wintypes.HANDLE, *[wintypes.DWORD] * 4, ctypes.POINTER(_Overlapped)]
    _lock_file.restype = wintypes.BOOL

    def _lock_on_windows(fd: int, wait: bool) -> None:
        # One byte far behind every file's end: what is locked nobody else can read.
        place = _Overlapped(offset_high=0x40000000)
        flags = _EXCLUSIVE if wait else _EXCLUSIVE | _FAIL_IMMEDIATELY
        if not _lock_file(msvcrt.get_osfhandle(fd), flags, 0, 1, 0, ctypes.byref(place)):
            error = ctypes.get_last_error()
            if error == _LOCK_VIOLATION:
                raise BlockingIOError(error, "locked by another process")
            raise ctypes.WinError(error)
