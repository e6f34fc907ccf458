"""How far a student is from its teacher on a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedb.errors import EdgeDBError

from .decoder import Decoder, uncompiled
from .head import Head
from .text import load_ids

# Rows of logits that exist at one time: 400 MB for a vocabulary of 49,152.
CHUNK = 2048

# A model's last hidden states ``[n, hidden]`` and its head.
States = tuple[Tensor, Head]


def read_windows(paths: Iterable[Path], vocab_size: int) -> dict[str, Tensor]:
    """Texts to measure on, ``.npy`` files of ids ``[windows, tokens]``: stem -> int64.

    Raises ``EdgeDBError`` for a file that is something else, or of another tokenizer.
    """
    return {path.stem: torch.from_numpy(_windows(path, vocab_size)) for path in paths}


def _windows(path: Path, vocab_size: int) -> NDArray[np.int64]:
    ids = load_ids(path, ndim=2)
    if not ids.size or ids.min() < 0 or ids.max() >= vocab_size:
        raise EdgeDBError(f"{path}: expected token ids from 0 to {vocab_size - 1}")
    return ids.astype(np.int64)


@dataclass(frozen=True)
class Compared:
    """What student and teacher predict at the same ``n`` places of a text.

    log_ps, log_pt: the student's and the teacher's log-probabilities, float32 ``[n, vocabulary]``;
    targets: what came there, int64 ``[n]``. The rest is ``[n]``; kl and nll are in nats.
    """

    log_ps: Tensor
    log_pt: Tensor
    targets: Tensor

    @cached_property
    def likeliest(self) -> Tensor:
        """The student's best token."""
        return self.log_ps.argmax(-1)

    @property
    def agrees(self) -> Tensor:
        """Whether it is the teacher's."""
        return self.likeliest == self.log_pt.argmax(-1)

    @property
    def kl(self) -> Tensor:
        """From the teacher to the student."""
        return (self.log_pt.exp() * (self.log_pt - self.log_ps)).sum(-1)

    @property
    def nll(self) -> Tensor:
        """The student's negative log-likelihood."""
        return self._nll(self.log_ps)

    @property
    def teacher_nll(self) -> Tensor:
        """The teacher's."""
        return self._nll(self.log_pt)

    def _nll(self, log_p: Tensor) -> Tensor:
        return -log_p.gather(1, self.targets[:, None])[:, 0]


@torch.no_grad()
def predicting_states(model: Decoder, windows: Tensor) -> States:
    """States of every place of ``windows [windows, tokens]`` but the last of each, which has
    nothing to predict: ``n = windows * (tokens - 1)``."""
    hidden, head = model(windows.to(model.device))
    return hidden[:, :-1].flatten(0, 1), head


@torch.no_grad()
def compared(student: States, teacher: States, targets: Tensor) -> Iterator[Compared]:
    """The ``n`` places, at most ``CHUNK`` at a time."""
    for at in range(0, len(targets), CHUNK):
        piece = slice(at, at + CHUNK)
        log_ps, log_pt = (
            head.logits(hidden[piece]).float().log_softmax(-1)
            for hidden, head in (student, teacher)
        )
        yield Compared(log_ps, log_pt, targets[piece])


@torch.no_grad()
def evaluate(
    student: Decoder, teacher: Decoder, ids: Tensor, *, rows: int = 4, bfloat16: bool = True
) -> dict[str, float]:
    """Quality on windows ``ids [windows, tokens]``, each predicted from its own start.

    Returns ``kl`` (nats a token, to the teacher), ``ppl``, ``teacher_ppl``, ``top1`` (agreement).
    """
    device = student.device
    total = torch.zeros(4, dtype=torch.float64, device=device)
    for part in ids.split(rows):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), uncompiled():
            states = (predicting_states(model, part) for model in (student, teacher))
            for piece in compared(*states, part[:, 1:].flatten().to(device)):
                terms = (piece.kl, piece.nll, piece.teacher_nll, piece.agrees)
                total += torch.stack([t.double().sum() for t in terms])
    kl, ce, teacher_ce, top1 = (total / (ids.shape[0] * (ids.shape[1] - 1))).tolist()
    return {
        "kl": kl,
        "ppl": exponential(ce),
        "teacher_ppl": exponential(teacher_ce),
        "top1": top1,
    }


def exponential(nll: float) -> float:
    """Perplexity of a mean negative log-likelihood; a hopeless one stays a number."""
    return math.exp(min(nll, 700.0))
