"""Arrays that the operations work on: 64-byte aligned, allocated once, never copied."""

from __future__ import annotations

from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; one cache line, one AVX-512 register
HUGE = 2 << 20  # bytes of a huge page, of x86 and of most of Arm
ASKED = 4 << 20  # bytes from which on numpy asks for huge pages


def aligned_zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """C-contiguous array of zeros whose data starts on a 64-byte boundary.

    Pages are not touched before they are used, so a large key/value cache costs no memory
    until the context grows into it.
    """
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    wanted = size_bytes + ALIGNMENT
    # What holds a huge page is made large enough to get one; what lies behind it is never touched.
    raw = np.zeros(max(wanted, ASKED) if wanted > HUGE else wanted, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


class Buffer:
    """An array as an operation sees it; ``ptr`` is the backend's pointer to it, prepared once."""

    __slots__ = ("array", "ptr")

    def __init__(self, array: np.ndarray, ptr: Any = None) -> None:
        self.array = array
        self.ptr = ptr
