"""What every matrix costs at each number of planes, before any of it is stored.

The squared error of a fit falls by the same factors from one number of planes to the next, whatever
the matrix and its inputs, so one number a matrix says all: the KL that one pair in it would make.
It comes from a trial fit of a few rows, for inputs weighted by the gradient of the whole model's
loss at each token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..format.tensors import Kind
from ..model.families import program_of
from .fdb import fit
from .feedback import panels
from .gradients import backwards
from .sources import Source
from .workers import Each, in_turn

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

# Squared error over that of two planes, of Gaussian groups and within 5% of every matrix tried.
ERROR: dict[Kind, float] = {2: 1.0, 3: 0.228, 4: 0.055, 6: 0.0042, "int8": 0.001}
# Of two planes over the weights' energy, where inputs are looked up and have no correlations.
_ALONE = 0.12
_TRIAL_ROWS = 64


def sensitivities(
    source: Source,
    ids: Ids,
    file: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    each: Each = in_turn,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """The KL, in nats a token, that each matrix would make as one pair, the others exact.

    ids: ``[sequences, tokens]``; ``file`` for the layers' inputs is removed in the end.
    """
    program = program_of(source.config)
    matrices = program.matrices()
    (head,) = program.head.matrices
    found = dict.fromkeys(matrices, 0.0)
    seen: dict[str, Float32] = {}

    def collect(name: str, x: Float32, gradient: Float32) -> None:
        x = x.reshape(-1, x.shape[-1])
        gradient = gradient.reshape(len(x), -1)
        energy = np.einsum("tr,tr->t", gradient, gradient)
        if name == "embedding":
            each = np.square(x).mean(axis=1) * energy
            found[name] += _ALONE * float(each.sum()) / 2 / ids.size
            return
        mean = energy / np.float32(gradient.shape[1] * ids.size)
        x = x * np.sqrt(mean)[:, None]
        seen[name] = seen.get(name, np.float32(0)) + x.T @ x

    total = 2 * len(program.layers) + 2
    try:
        for done, _ in enumerate(backwards(source, ids, file, seed, collect, each)):
            for name, hessian in seen.items():
                matrix = head if name == "head" else name
                found[matrix] += _trial(source, matrix, hessian, threads)
            seen.clear()
            progress(done + 1, total)
    finally:
        file.unlink(missing_ok=True)
    return found


def _trial(source: Source, name: str, hessian: Float32, threads: int | None) -> float:
    """Half the loss of one pair under ``hessian``, from some rows of the matrix."""
    rows, cols = program_of(source.config).matrices()[name]
    some = _some_rows(source, name, rows)
    parts = [hessian[part, part] for part in panels(cols)]
    lost = some - fit(some, 2, hessians=parts, threads=threads).quantized
    return float(np.vdot(lost @ hessian, lost)) / 2 * rows / len(some)


def _some_rows(source: Source, name: str, rows: int) -> Float32:
    """Of a matrix, or of experts all over a stack, whose inputs are weighed together."""
    count = min(rows, _TRIAL_ROWS)
    chosen = np.linspace(0, rows - 1, count).astype(int)
    experts = program_of(source.config).stacks().get(name)
    if experts is None:
        return source.tensor(name)[chosen]
    of = np.linspace(0, experts - 1, count).astype(int)
    found: Float32 = np.concatenate(
        [source.expert(name, int(e))[chosen[of == e]] for e in np.unique(of)]
    )
    return found
