"""Question 2: are FDB's levels and the twin-entropy weight of use beyond language?"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..command import say
from ..dad import LossOptions
from ..decoder import Dense
from ..options import TrainOptions
from ..quality import compared
from .grids import GRIDS, fitted
from .images import NETS, Ids, Images, ImageTrainer, Net, digits, untrained
from .jobs import GAMMA
from .results import Results

LOSSES = {"kl": None, "dad": GAMMA}


@dataclass(frozen=True)
class Size:
    """Images to train on, of 1,797; steps of ``batch`` of them, of the teacher and of students."""

    train: int = 1200
    batch: int = 100
    teacher_steps: int = 360
    steps: int = 240


SMALL = Size(train=200, batch=50, teacher_steps=12, steps=4)


def options_of(size: Size, steps: int, seed: int, loss: LossOptions) -> TrainOptions:
    """Of a net's training; the width of a row stands for a text's length."""
    return TrainOptions(
        steps=steps, batch=size.batch, micro_batch=size.batch, length=65, seed=seed, loss=loss,
        lr_latent=5e-3, lr_scale=1e-3, lr_embedding=1e-3, warmup=max(1, steps // 20),
        final_share=0.02, real_share=1.0, validate_every=10**9, save_every=10**9, log_every=10**9,
    )  # fmt: skip


def train(net: Net, teacher: Net, rows: Ids, options: TrainOptions) -> None:
    """With nothing left on the disk."""
    with tempfile.TemporaryDirectory() as scratch:
        ImageTrainer(
            net,  # has all of a decoder that a trainer asks for
            teacher,
            options,
            Images(rows, options.seed),  # type: ignore[arg-type]
            Path(scratch),
        ).train(save=False)


@torch.no_grad()
def measured(net: Net, teacher: Net, rows: Ids) -> dict[str, float]:
    """Accuracy on images, how often the teacher's answer is given, and KL to it, nats an image."""
    ids = torch.from_numpy(rows)
    states = [(hidden[:, 0], head) for hidden, head in (model(ids) for model in (net, teacher))]
    pieces = list(compared(states[0], states[1], ids[:, 0]))
    right = [(piece.likeliest == piece.targets).float() for piece in pieces]

    def mean(parts: Iterable[Tensor]) -> float:
        return float(torch.cat(list(parts)).mean())

    return {
        "accuracy": mean(right),
        "agrees": mean(piece.agrees.float() for piece in pieces),
        "kl": mean(piece.kl for piece in pieces),
    }


@torch.no_grad()
def student_of(teacher: Net, grid: str, rows: Ids) -> Net:
    """The teacher's weights in a grid, by least squares over the inputs that ``rows`` give."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].float().flatten(0, -2).square().mean(dim=0)

        return hook

    hooks = [m.register_forward_pre_hook(keep(name)) for name, m in teacher.matrices()]
    teacher(torch.from_numpy(rows))
    for hook in hooks:
        hook.remove()
    student = copy.deepcopy(teacher)
    for name, plain in list(student.matrices()):
        assert isinstance(plain, Dense)
        student.inside[name] = fitted(grid, plain, seen[name])
    return student


def run(results: Results, size: Size, seeds: int) -> None:
    """Every net, seed, grid and loss; a seed is a split, a teacher and the order of images."""
    images = digits()
    torch.set_num_threads(1)
    for kind in NETS:
        for seed in range(seeds):
            _one(results, size, kind, seed, images)


def _one(results: Results, size: Size, kind: str, seed: int, images: Ids) -> None:
    keys = {
        (grid, loss): f"vision/{kind}/{grid}/{loss}/seed {seed}"
        for grid in GRIDS
        for loss in ("start", *LOSSES)
    }
    first = f"vision/{kind}/full/seed {seed}"
    if all(key in results for key in (first, *keys.values())):
        return
    order = np.random.default_rng(seed).permutation(len(images))
    rows, test = images[order[: size.train]], images[order[size.train :]]
    facts = {"kind": "vision", "net": kind, "seed": seed, "train": len(rows), "test": len(test)}

    def add(key: str, net: Net, begun: float, **own: Any) -> None:
        if key not in results:
            found = measured(net, teacher, test)
            seconds = round(time.monotonic() - begun, 1)
            results.add({"key": key, **facts, **own, **found, "seconds": seconds})
            say(f"{key}: accuracy {found['accuracy']:.4f}, KL {found['kl']:.4f}")

    begun = time.monotonic()
    teacher = untrained(kind, seed)
    learning = options_of(size, size.teacher_steps, seed, LossOptions(ce_share=1.0))
    train(teacher, teacher, rows, replace(learning, weight_decay=0.05))
    teacher.requires_grad_(False)
    weights = sum(m.weight.numel() for _, m in teacher.matrices() if isinstance(m, Dense))
    add(first, teacher, begun, grid="full", loss="", weights=weights, size=asdict(size))
    for grid in GRIDS:
        start = student_of(teacher, grid, rows)
        add(keys[grid, "start"], start, time.monotonic(), grid=grid, loss="start")
        for loss, gamma in LOSSES.items():
            begun = time.monotonic()
            student = copy.deepcopy(start)
            train(student, teacher, rows, options_of(size, size.steps, seed, LossOptions(gamma)))
            add(keys[grid, loss], student, begun, grid=grid, loss=loss)
