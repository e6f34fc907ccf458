"""Scales and norms alone, by the distance of the whole model's predictions; planes stay.

A pass goes through the layers twice: forth, keeping what each reads, and back, computing each layer
again for its gradients. One layer at a time is on the GPU if the model has no room there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .block_training import project_matrices, weight_size
from .dad import IGNORE, LossOptions, distillation_loss
from .decoder import Decoder, Layer, before
from .fixed import Fixed
from .head import Head
from .interpreter import Where
from .layerwise import load_whole, matrices_of, save_whole
from .options import TrainOptions, schedule
from .streams import Stream
from .trainer import autocast

ROOM = 0.4  # of a GPU's free memory, that the student may take
VECTOR_SHARE = 0.2  # of the rate of scales, that norms and biases learn with: each counts for a row
HELD_BYTES = 8  # a weight in float32, and its gradient
CHECKED = 32  # sequences that the KL is measured on before and after


@dataclass(frozen=True)
class ScaleOptions:
    """Settings of the steps at the end.

    rate: the peak of AdamW's, as a share of the root mean square of a matrix's weights; for norms
    and biases ``VECTOR_SHARE`` of it.
    """

    steps: int = 60
    batch: int = 32  # sequences of a step
    micro_batch: int = 8  # that go through the model at once
    rate: float = 2e-3
    warmup: int = 5
    final_share: float = 0.05
    save_every: int = 20
    seed: int = 0

    def share(self, step: int) -> float:
        """Share of the peak rate at a step."""
        like = TrainOptions(self.steps, warmup=self.warmup, final_share=self.final_share)
        return schedule(step, step / self.steps, like)


def fix_planes(student: Decoder, device: torch.device) -> dict[Fixed, float]:
    """Exchange the layers' matrices for ones whose planes stay; of each, its weights' size."""
    sizes = {}
    for layer in student.layers:
        assert isinstance(layer, Layer)
        with visiting(layer, device):
            for name, module in matrices_of(layer).items():
                size = weight_size(module)
                fixed = Fixed(module)
                layer.put(name, fixed)
                sizes[fixed] = size
    return sizes


def loosen_planes(student: Decoder, device: torch.device) -> None:
    """The inverse, with the scales that the matrices have by then; the student goes to the CPU."""
    for layer in student.layers:
        assert isinstance(layer, Layer)
        layer.to(device)
        for name, module in layer.weights().items():
            if isinstance(module, Fixed):
                layer.put(name, module.loosened())
        layer.to("cpu")
    student.to("cpu")


def parameter_groups(
    student: Decoder, sizes: Mapping[Fixed, float], rate: float
) -> list[dict[str, Any]]:
    """Optimizer groups with their peak rates: scales of the layers, norms and biases."""
    student.requires_grad_(False)
    groups = []

    def add(learned: list[nn.Parameter], size: float) -> None:
        for parameter in learned:
            parameter.requires_grad_()
        groups.append({"params": learned, "lr": 0.0, "peak": rate * size})

    for fixed, size in sizes.items():
        add(fixed.scales(), size)
    for _, vector in student.vectors():
        add([vector], VECTOR_SHARE * vector.square().mean().sqrt().item())
    return groups


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses, of a GPU or of the main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def place(student: Decoder, sizes: Mapping[Fixed, float], device: torch.device) -> bool:
    """Put the student on a GPU, or its ends alone if the rest has no room there; whether it is
    there whole, with room for held weights and their gradients."""
    size = sum(t.nbytes for t in student.state_dict().values())
    held = sum(HELD_BYTES * fixed.stored.numel() for fixed in sizes)
    free = ROOM * free_memory(device)
    if device.type == "cuda" and size > free:
        layers, student.layers = student.layers, nn.ModuleList()
        student.to(device)
        student.layers = layers
    else:
        student.to(device)
    return size + held <= free


@contextmanager
def holding(matrices: Collection[Fixed]) -> Iterator[None]:
    """Weights of the matrices, worked out once for all passes inside."""
    for fixed in matrices:
        fixed.hold()
    try:
        yield
    finally:
        for fixed in matrices:
            fixed.release()


@contextmanager
def visiting(layer: Layer, device: torch.device) -> Iterator[Layer]:
    """A layer on the device, for the time being."""
    home = next(layer.parameters()).device
    layer.to(device)
    try:
        yield layer
    finally:
        layer.to(home)


class Walk:
    """Passes of a student against its teacher's states before the head, ``goals``."""

    def __init__(self, student: Decoder, ids: Tensor, goals: Stream, goal_head: Head) -> None:
        self.student, self.ids, self.goals, self.goal_head = student, ids, goals, goal_head

    def forth(self, rows: NDArray[np.int64]) -> tuple[list[Tensor], Tensor, Where]:
        """What each layer reads of some sequences, and what the last one gives."""
        where = self.student.around(self.student.turns(self.ids.shape[1]))  # on its device of now
        ids = self.ids[torch.from_numpy(rows)].to(self.student.device)
        reads = [self.student.enter(ids, where)]
        for layer in self.student.layers:
            with visiting(layer, self.student.device):
                reads.append(layer(reads[-1], where.turns))
        return reads[:-1], reads[-1], where

    def loss(self, x: Tensor, where: Where, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The mean KL, with a gradient to ``x``, and without one."""
        hidden, head = self.student.leave(x, where)
        goal = before(self.goal_head, self.goals.take(rows))
        unknown = torch.full(goal.shape[:2], IGNORE, device=goal.device)
        options = LossOptions()
        loss, tokens = distillation_loss(hidden, head, goal, self.goal_head, unknown, options)
        return loss, tokens.kl.mean()

    def forth_and_back(self, rows: NDArray[np.int64], share: float) -> Tensor:
        """Add ``share`` of the gradients on some sequences to the student's; the mean KL."""
        # Apart: what autocast keeps of weights in the first may have no gradients.
        with torch.no_grad(), autocast(self.student.device):
            reads, x, where = self.forth(rows)
        with autocast(self.student.device):
            x.requires_grad_()
            loss, kl = self.loss(x, where, rows)
            (loss * share).backward()
            for layer, read in zip(reversed(self.student.layers), reversed(reads), strict=True):
                gradient, x = x.grad, read.requires_grad_()
                with visiting(layer, self.student.device):
                    layer(x, where.turns).backward(gradient)
        return kl

    @torch.no_grad()
    def measured(self, micro_batch: int) -> float:
        """The mean KL on the first sequences."""
        rows = np.arange(min(CHECKED, len(self.ids)))
        total = 0.0
        for part in np.split(rows, range(micro_batch, len(rows), micro_batch)):
            with autocast(self.student.device):
                _, x, where = self.forth(part)
                total += self.loss(x, where, part)[1].item() * len(part)
        return total / len(rows)


def train_scales(
    walk: Walk,
    options: ScaleOptions,
    state: Path,
    progress: Callable[[int, float], None] = lambda step, kl: None,
) -> tuple[float, float]:
    """Train the student of ``walk`` in place; its mean KL before and after, on the same sequences.

    A training that makes it larger is taken back. The student is on the CPU in the end. ``state``
    is a file that an interrupted run goes on from.
    """
    student, device = walk.student, walk.goals.device
    sizes = fix_planes(student, device)
    held = [*sizes] if place(student, sizes, device) else []
    groups = parameter_groups(student, sizes, options.rate)
    learned = [p for group in groups for p in group["params"]]
    kept = [p.detach().clone() for p in learned]
    with holding(held):
        before = walk.measured(options.micro_batch)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    step = 0
    if state.exists():
        saved = load_whole(state)
        fill(learned, saved["learned"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    while step < options.steps:
        kl = train_step(walk, optimizer, options, step, held)
        project_matrices(fixed.module for fixed in sizes)
        step += 1
        progress(step, kl)
        if step % options.save_every == 0 and step < options.steps:
            save_state(state, learned, optimizer, step)
    with holding(held):
        after = walk.measured(options.micro_batch)
    if not after < before:
        fill(learned, kept)
        after = before
    student.requires_grad_(False)
    loosen_planes(student, device)
    return before, after


def train_step(
    walk: Walk,
    optimizer: torch.optim.Optimizer,
    options: ScaleOptions,
    step: int,
    held: Collection[Fixed] = (),
) -> float:
    """One step; the mean KL before it. ``held``: matrices that there is room to hold weights of."""
    n = len(walk.ids)
    batch = min(options.batch, n)
    rows = np.random.default_rng((options.seed, step)).choice(n, batch, replace=False)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * options.share(step)
    kl = torch.zeros((), device=walk.goals.device)
    with holding(held):
        for part in np.split(rows, range(options.micro_batch, batch, options.micro_batch)):
            share = len(part) / batch
            kl += walk.forth_and_back(part, share) * share
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return kl.item()


@torch.no_grad()
def fill(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Take values that the parameters had before."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def save_state(
    state: Path,
    learned: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Write what the next steps need. Raises ``EdgeDBError`` if the disk is full."""
    save_whole(
        state,
        {
            "learned": [p.detach().cpu() for p in learned],
            "optimizer": optimizer.state_dict(),
            "step": step,
        },
    )
