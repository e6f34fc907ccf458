"""Embedding and head in planes that learn.

A table is read whole and multiplied whole, so at two bits it would cost what the layers gain, and
in 8 bits it is half of a small model's bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decoder import Decoder
from .stacks import Stack


class FDBTable(Stack):
    """A table ``[rows, cols]`` of planes; calling it gives the matrix, float32."""

    def forward(self) -> Tensor:
        return self.weight()


@torch.no_grad()
def head_hessians(student: Decoder, ids: Tensor) -> list[NDArray[np.float32]]:
    """``X^T X`` of what the head multiplies on ``ids [windows, tokens]``, for the fit."""
    from edgedb.convert.feedback import panels

    seen = torch.zeros(student.config.hidden_size, student.config.hidden_size)
    for window in ids:
        rows = student(window[None])[0][0].float()[:, : len(seen)]  # without that of a bias
        seen += (rows.t() @ rows / rows.shape[0] / len(ids)).cpu()
    return [np.ascontiguousarray(seen.numpy()[part, part]) for part in panels(len(seen))]
