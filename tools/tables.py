"""Embedding and head in stacked pairs of planes that learn.

A table is read whole and multiplied whole, so at two bits it would cost what the layers gain, and
in 8 bits it is half of a small model's bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decoder import Decoder
from .parallel import local, reshard, whole
from .stacks import Stack
from .student import empty_student, plan_of


class FDBTable(Stack):
    """A table ``[rows, cols]`` of stacked pairs; calling it gives the matrix, float32."""

    def forward(self) -> Tensor:
        return self.weight()


@torch.no_grad()
def head_hessians(student: Decoder, ids: Tensor) -> list[NDArray[np.float32]]:
    """``X^T X`` of what the head multiplies on ``ids [windows, tokens]``, for the fit."""
    from edgedb.convert.feedback import panels

    seen = torch.zeros(student.config.hidden_size, student.config.hidden_size)
    for window in ids:
        rows = student(window[None])[0][0].float()
        seen += (rows.t() @ rows / rows.shape[0] / len(ids)).cpu()
    return [np.ascontiguousarray(seen.numpy()[part, part]) for part in panels(len(seen))]


@torch.no_grad()
def paired_tables(student: Decoder, pairs: int, ids: Tensor, *, sharded: bool = False) -> Decoder:
    """A student equal to ``student`` but for its tables: ``pairs`` pairs, fitted to their use.

    The fit runs on the CPU, in every process for itself.
    """
    from edgedb.convert.fdb import fit

    hessians = head_hessians(student, ids)
    reshard(student)
    device = student.device
    plan = plan_of(student) | dict.fromkeys(student.tables(), pairs)
    out = empty_student(student.config, device, plan, sharded=sharded)
    parts = [[*dict(model.vectors()).values()] for model in (out, student)]
    for model, found in zip((out, student), parts, strict=True):
        for _, module in model.matrices():
            found += module.parameters()
    for mine, theirs in zip(*parts, strict=True):
        local(mine).copy_(local(theirs))
    for name, plain in student.tables().items():
        weight = whole(plain.detach()).float()
        fitted = fit(weight.cpu().numpy(), 2 * pairs, hessians=hessians).tensor
        table = out.tables()[name]
        assert isinstance(table, FDBTable)
        table.load(weight, fitted)
    return out
