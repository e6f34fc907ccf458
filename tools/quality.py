"""How far a student is from its teacher on a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .decoder import Decoder, uncompiled


@torch.no_grad()
def evaluate(
    student: Decoder, teacher: Decoder, ids: Tensor, *, rows: int = 4, bfloat16: bool = True
) -> dict[str, float]:
    """Quality on windows ``ids [windows, tokens]``, each predicted from its own start.

    Returns ``kl`` (nats a token, to the teacher), ``ppl``, ``teacher_ppl``, ``top1`` (agreement).
    """
    device = student.device
    total = torch.zeros(4, dtype=torch.float64, device=device)
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), uncompiled():
            mine, head = student(part)
            theirs, teacher_head = teacher(part)
            mine, theirs = (hidden[:, :-1].flatten(0, 1) for hidden in (mine, theirs))
            targets = part[:, 1:].flatten()
            for at in range(0, len(targets), 2048):
                piece = slice(at, at + 2048)
                log_ps = (mine[piece] @ head.t()).float().log_softmax(-1)
                log_pt = (theirs[piece] @ teacher_head.t()).float().log_softmax(-1)
                index = targets[piece, None]
                kl = (log_pt.exp() * (log_pt - log_ps)).sum(-1)
                same = log_ps.argmax(-1) == log_pt.argmax(-1)
                nll = [-log.gather(1, index)[:, 0] for log in (log_ps, log_pt)]
                total += torch.stack([t.double().sum() for t in (kl, *nll, same)])
    kl, ce, teacher_ce, top1 = (total / (ids.shape[0] * (ids.shape[1] - 1))).tolist()
    return {"kl": kl, "ppl": math.exp(ce), "teacher_ppl": math.exp(teacher_ce), "top1": top1}
