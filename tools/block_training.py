"""One layer of a student learns to do what the teacher's does.

The start is the exporter's fit; then planes and scales learn by straight-through gradients. The
loss is the squared error of the layer's output, each channel weighted by what its errors cost
(``tools.channels``), as a share of all that the layer changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedb.convert.forward import base_of
from edgedb.errors import FormatError

from .decoder import Layer
from .interpreter import Turns
from .layerwise import matrices_of, vectors_of
from .options import TrainOptions, schedule
from .stacks import FDBStack, Stack, latents_within, project_stack
from .streams import Stream
from .student import FDBLinear, project
from .trainer import autocast

CHECKED = 32  # sequences that the error is measured on
REPORTED = 16  # steps between two looks at the loss, which wait for the GPU


@dataclass(frozen=True)
class BlockOptions:
    """Settings of the training of each layer.

    lr_latent, lr_scale: peaks of AdamW's rates, as shares of the root mean square of a matrix's
    weights, because a step of AdamW is as large as its rate. start_tokens: that the fit sees.
    """

    epochs: int = 6
    batch: int = 8  # sequences
    lr_latent: float = 5e-3
    lr_scale: float = 1e-3
    warmup: int = 10
    final_share: float = 0.05
    start_tokens: int = 32768
    seed: int = 0

    def share(self, step: int, steps: int) -> float:
        """Share of the peak rates at a step."""
        like = TrainOptions(steps, warmup=self.warmup, final_share=self.final_share)
        return schedule(step, step / steps, like)


@dataclass(frozen=True)
class Error:
    """``sum w (y - t)^2 / sum w (t - x)^2``: w the channels' weights, y and t what the student's
    and the teacher's layer make of x."""

    weights: Tensor  # [hidden], divided by the mean of the denominator over all channels

    @classmethod
    def of(cls, weights: NDArray[np.float32], inputs: Stream, targets: Stream) -> Error:
        w = torch.from_numpy(weights).to(inputs.device)
        w = w / w.mean() if float(w.mean()) > 0 else torch.ones_like(w)
        changes = [
            ((t - x).square() * w).mean()
            for x, t in zip(inputs.batches(CHECKED), targets.batches(CHECKED), strict=True)
        ]
        return cls(w / torch.stack(changes).mean().clamp_min(torch.finfo(torch.float32).tiny))

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        return ((y - t).square() * self.weights).mean()


@torch.no_grad()
def fit_start(
    layer: Layer,
    teacher: Layer,
    inputs: Stream,
    path: Stream,
    turns: Turns,
    options: BlockOptions,
) -> None:
    """Fit every matrix, in a pass's order, as the exporter does: to the teacher's outputs, for the
    inputs that it has when those before it are fitted.

    inputs, path: states that the student's layer and the teacher's read. Raises ``FormatError`` for
    weights that are no numbers.
    """
    from edgedb.convert.fdb import fit

    for name, vector in vectors_of(layer).items():
        vector.copy_(vectors_of(teacher)[name])
    sequences = max(1, options.start_tokens // inputs.shape[1])
    linears = {v["matrix"]: v for v in layer.block.operations if v.op == "linear"}
    plain = teacher.weights()
    for name, module in matrices_of(layer).items():
        weight = plain[name].weight.detach().float()
        needs = Needs(weight)
        x, base = linears[name].args[0], base_of(layer.block, linears[name])
        batches = (stream.batches(sequences) for stream in (inputs, path))
        for mine, theirs in zip(*batches, strict=True):
            here, there = layer.values(mine, turns), teacher.values(theirs, turns)
            needs.add(here[x], there[x], None if base is None else there[base] - here[base])
        hessians, missing = needs.means()
        try:
            found = fit(weight.cpu().numpy(), module.planes, hessians=hessians, missing=missing)
        except (FormatError, np.linalg.LinAlgError) as error:
            raise FormatError(f"{name}: {error}") from None
        fill_planes(module, *latents_within(weight, found.tensor))


def fill_planes(module: nn.Module, latent: Tensor, scales: Tensor) -> None:
    """Take latents and scales of ``latents_within``."""
    if isinstance(module, Stack):
        module.fill(latent, scales)
    else:
        assert isinstance(module, FDBLinear)
        module.fill(latent, scales[..., :1], scales[..., 1:])


class Hessians:
    """Mean of ``x x^T`` over all that a matrix reads, for each of its panels."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._n_tokens = 0

    def add(self, x: Tensor) -> None:
        """``x [..., cols]``."""
        from edgedb.convert.feedback import panels

        rows = x.detach().float().flatten(0, -2)
        seen = [rows[:, part].t() @ rows[:, part] for part in panels(rows.shape[1])]
        old = self._sums or [torch.zeros_like(part) for part in seen]
        self._sums = [a + b for a, b in zip(old, seen, strict=True)]
        self._n_tokens += len(rows)

    def means(self) -> list[NDArray[np.float32]]:
        """float32 ``[n, n]`` for each of ``edgedb.convert.feedback.panels``."""
        return [(part / self._n_tokens).cpu().numpy() for part in self._sums]


class Needs:
    """What ``edgedb.convert.calibrate.Needs`` says of a matrix, from batches on a device."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.hessians = weight, Hessians()
        self._missing, self._n_tokens = torch.zeros_like(weight), 0

    def add(self, here: Tensor, there: Tensor, base: Tensor | None) -> None:
        """Inputs ``[..., cols]`` in the student and the teacher; base ``[..., rows]``: what the
        student's residual stream lacks where the product is added to it."""
        self.hessians.add(here)
        lack = F.linear((there - here).float(), self.weight)
        lack = lack if base is None else lack + base
        self._missing += lack.flatten(0, -2).t() @ here.float().flatten(0, -2)
        self._n_tokens += here.shape[:-1].numel()

    def means(self) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """Hessians, and missing outputs times inputs ``[rows, cols]``: see ``fdb.fit``."""
        return self.hessians.means(), (self._missing / self._n_tokens).cpu().numpy()


def parameter_groups(layer: Layer, options: BlockOptions) -> list[dict[str, Any]]:
    """Optimizer groups with their peak rates. Planes and scales learn, norms and biases do not."""
    layer.requires_grad_(False)
    groups = []
    for module in matrices_of(layer).values():
        size = weight_size(module)
        stacked = isinstance(module, FDBStack)
        scales = [module.alphas] if stacked else [module.alpha1, module.alpha2]
        for rate, learned in ((options.lr_latent, [module.latent]), (options.lr_scale, scales)):
            for parameter in learned:
                parameter.requires_grad_()
            groups.append({"params": learned, "lr": 0.0, "peak": rate * size})
    return groups


def train_layer(
    layer: Layer,
    inputs: Stream,
    targets: Stream,
    turns: Turns,
    weights: NDArray[np.float32],
    options: BlockOptions,
    seed: tuple[int, ...],
    progress: Callable[[int, int, float], None] = lambda done, of, error: None,
) -> tuple[float, float]:
    """Train the layer in place; its error before and after.

    weights ``[hidden]``: what errors of a channel cost, of any scale. A training that makes the
    error larger is taken back. ``progress`` is called with steps done, steps in all, and the error.
    """
    error = Error.of(weights, inputs, targets)
    before = measured(layer, inputs, targets, turns, error)
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    groups = parameter_groups(layer, options)
    fused = inputs.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    per_epoch = -(-len(inputs) // options.batch)
    steps = options.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = np.random.default_rng((*seed, step)).permutation(len(inputs))
        at = step % per_epoch * options.batch
        rows = order[at : at + options.batch]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * options.share(step, steps)
        with autocast(inputs.device):
            y = layer(inputs.take(rows), turns)
        loss = error(y, targets.take(rows))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        project_matrices(matrices_of(layer).values())
        if step % REPORTED == 0:
            progress(step, steps, loss.item())
    layer.requires_grad_(False)
    after = measured(layer, inputs, targets, turns, error)
    if not after < before:
        layer.load_state_dict(kept)
        after = before
    return before, after


def weight_size(module: FDBLinear | FDBStack) -> float:
    """Root mean square of a matrix's weights; less where its levels are finer."""
    size: float = module.latent.detach().square().mean().sqrt().item()
    return size * 0.5 ** (module.planes / 2 - 1)


def project_matrices(modules: Iterable[FDBLinear | FDBStack]) -> None:
    """Scales back to what the format allows, after an optimizer step."""
    modules = list(modules)
    project([m for m in modules if isinstance(m, FDBLinear)])
    for module in modules:
        if isinstance(module, FDBStack):
            project_stack(module)


@torch.no_grad()
def measured(layer: Layer, inputs: Stream, targets: Stream, turns: Turns, error: Error) -> float:
    """The layer's error on the first sequences."""
    found = [
        error(layer(x, turns), t)
        for x, t in zip(inputs.batches(CHECKED), targets.batches(CHECKED), strict=True)
    ]
    return torch.stack(found).mean().item()
