"""What an error in a channel between two layers costs at the end of the model.

To second order an error ``e`` costs ``e^T F e / 2`` with F the Fisher information, whose diagonal
is the mean square gradient of the log-likelihood of labels that the model itself draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decoder import Layer
from .interpreter import Turns, Where
from .layerwise import Teacher
from .streams import Stream

TOKENS = 1024  # whose logits exist at one time


def mean_square_gradients(
    teacher: Teacher,
    ids: Tensor,
    folder: Path,
    *,
    batch: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """float32 ``[layers, hidden]``: of the loss, by what each layer adds up to on ``ids``.

    ids int64 ``[sequences, tokens]``. ``folder`` holds the hidden states between all layers
    meanwhile; ``progress`` is called after every pass through a layer, there and back.
    """
    device, n_layers = teacher.device, teacher.source.config.n_layers
    paths = [folder / f"before-{i}.npy" for i in range(n_layers + 1)]
    gradients = [folder / f"gradient-{i}.npy" for i in range(2)]
    turns = teacher.ends.turns(ids.shape[1])
    where = teacher.ends.around(turns)
    found = np.zeros((n_layers, teacher.source.config.hidden_size), np.float32)
    try:
        shape = (*ids.shape, teacher.source.config.hidden_size)
        entered = (teacher.ends.enter(part.to(device), where) for part in ids.split(batch))
        reads = [Stream.make(paths[0], shape, entered, device, batch)]
        for i in range(n_layers):
            reads.append(reads[i].through(paths[i + 1], teacher.layer(i), turns))
            progress()
        draw = torch.Generator(device).manual_seed(seed)
        pull = partial(_gradient_of_labels, teacher, where, draw)
        flow = reads.pop().to(gradients[0], pull)
        for i in reversed(range(n_layers)):
            found[i] = _mean_square(flow)
            if i:  # what stands before the first layer is not learned
                before = reads.pop().batches()
                pull = partial(_pulled_back, teacher.layer(i), turns, before)
                flow = flow.to(gradients[i % 2], pull)
            progress()
    finally:
        for path in (*paths, *gradients):
            path.unlink(missing_ok=True)
    return found


@torch.enable_grad()
def _gradient_of_labels(teacher: Teacher, where: Where, draw: torch.Generator, x: Tensor) -> Tensor:
    """By ``x [n, tokens, hidden]``, which the last layer gives: of every token's own loss."""
    x = x.detach().requires_grad_()
    hidden, head = teacher.ends.leave(x, where)
    with torch.no_grad():
        flat = hidden.flatten(0, 1)
        pulled = torch.empty_like(flat)
        for rows in torch.arange(len(flat), device=x.device).split(TOKENS):
            logits = head.logits(flat[rows])
            p = logits.float().softmax(-1)
            label = torch.multinomial(p, 1, generator=draw)
            p.scatter_add_(1, label, p.new_full(label.shape, -1.0))
            pulled[rows] = head.by_products(p, logits) @ head.weight
    (gradient,) = torch.autograd.grad(hidden, x, pulled.view_as(hidden))
    return gradient


@torch.enable_grad()
def _pulled_back(layer: Layer, turns: Turns, reads: Iterator[Tensor], gradient: Tensor) -> Tensor:
    """The gradient by what a layer reads next, from that by what it then gives."""
    x = next(reads).detach().requires_grad_()
    (found,) = torch.autograd.grad(layer(x, turns), x, gradient)
    return found


def _mean_square(flow: Stream) -> NDArray[np.float32]:
    means = [gradient.double().square().mean(dim=1).sum(dim=0) for gradient in flow.batches()]
    return (torch.stack(means).sum(dim=0) / len(flow)).float().cpu().numpy()
