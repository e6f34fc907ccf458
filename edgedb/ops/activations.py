"""Step 1 of the numerics: activations to int8 in groups of 64 columns."""

from __future__ import annotations

import numpy as np

from ..format.packing import SMALLEST_NORMAL
from ..format.tensors import GROUP


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations ``x`` float32 ``[n, cols]`` to int8 in groups of 64 columns.

    Returns ``q`` int8 ``[n, groups, 64]`` (zero-padded) and ``sx`` float32 ``[n, groups]`` with
    ``x ~ sx * q``. A group with NaN or infinity gets ``sx = NaN``, so that every output is NaN; a
    group whose scale would be subnormal counts as zeros.
    """
    blocks = in_groups(x)
    return quantize_to(np.abs(blocks).max(axis=2), blocks)


def in_groups(x: np.ndarray, fill: float = 0) -> np.ndarray:
    """``[n, cols]`` as ``[n, groups, 64]``, with ``fill`` behind the end."""
    n, cols = x.shape
    groups = -(-cols // GROUP)
    padded = np.full((n, groups * GROUP), fill, x.dtype)
    padded[:, :cols] = x
    return padded.reshape(n, groups, GROUP)


def quantize_to(largest: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of whole groups ``[n, groups, 64]``, whose ``largest [n, groups]`` become 127."""
    finite = np.isfinite(blocks).all(axis=2)
    sx = largest / np.float32(127)
    usable = finite & (sx >= SMALLEST_NORMAL)
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.clip(np.rint(blocks / sx[:, :, None]), -127, 127)
    q = np.where(usable[:, :, None], q, 0).astype(np.int8)
    sx = np.where(usable, sx, np.where(finite, np.float32(0), np.float32(np.nan)))
    return q, sx.astype(np.float32)
