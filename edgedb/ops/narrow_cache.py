"""Rows of an int8 key/value cache: codes, then a float32 scale for each group of 64 columns."""

from __future__ import annotations

import numpy as np

from ..format.tensors import GROUP
from .activations import quantize


def row_bytes(head_dim: int) -> int:
    """Bytes of one row."""
    return head_dim + 4 * -(-head_dim // GROUP)


def pack_rows(x: np.ndarray) -> np.ndarray:
    """float32 ``[..., head_dim]`` to int8 ``[..., row_bytes]``, by the rules of activations."""
    *shape, head_dim = x.shape
    q, sx = quantize(x.reshape(-1, head_dim))
    codes = q.reshape(len(q), -1)[:, :head_dim]
    rows = np.concatenate([codes, sx.view(np.int8).reshape(len(q), -1)], axis=1)
    return rows.reshape(*shape, -1)


def unpack_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """int8 ``[..., row_bytes]`` to float32 ``[..., head_dim]``: ``scale * code``."""
    scales = row_scales(rows, head_dim)
    columns = np.arange(head_dim) // GROUP
    with np.errstate(invalid="ignore"):
        wide: np.ndarray = scales[..., columns] * rows[..., :head_dim].astype(np.float32)
    return wide


def row_scales(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The scales in ``rows``, float32 ``[..., groups]``."""
    return np.ascontiguousarray(rows[..., head_dim:]).view(np.float32)
