"""Students of other levels than FDB's, on the same latents, gradients and 8-bit scale codes.

A group's levels are rows of a table times its scales. FDB's own table, with two scales, is
``0, a1, a2, a1 + a2``; here one scale s moves all levels together:

    binary    -s, s
    ternary   -s, 0, s
    uniform   -s, 0, s, 2s    (DB-LLM's start, whose two scales never part; s of either sign)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..decoder import Decoder, Dense, Layer
from ..parallel import assign
from ..stacks import FDBStack, project_stack, stack_codes
from ..student import FDBLinear, fit_scales

LEVELS: Mapping[str, tuple[int, ...]] = {
    "binary": (-1, 1),
    "ternary": (-1, 0, 1),
    "uniform": (-1, 0, 1, 2),
}
GRIDS = (*LEVELS, "fdb")
ROUNDS = 12  # of nearest level and least squares
# Of a group's root mean square: scales that the fit begins with.
_FACTORS = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8)


class _Quantize(torch.autograd.Function):
    """Latents to the nearest of ``unit * c * levels``, straight through inside the grid and back
    into it, as FDB's."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, alphas: Tensor, scale: Tensor, levels: tuple[int, ...]
    ) -> Tensor:
        digit = nearest(latent, scale, levels)
        ctx.save_for_backward(latent, digit, scale)
        ctx.levels = levels
        return scale * digit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        latent, digit, scale = ctx.saved_tensors
        ends = scale * ctx.levels[0], scale * ctx.levels[-1]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        passes = ((latent >= low) | (grad < 0)) & ((latent <= high) | (grad > 0))
        by_scale = (grad * digit).sum(-1, keepdim=True)
        return torch.where(passes, grad, 0.0), by_scale, None, None


def nearest(latent: Tensor, scale: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The digit of ``levels``, ascending, whose ``scale * digit`` is nearest to each latent.

    latent ``[rows, groups, 64]``, scale ``[rows, groups, 1]``.
    """
    found = torch.full_like(latent, levels[0])
    up = torch.where(scale < 0, -1.0, 1.0) * latent
    for below, digit in itertools.pairwise(levels):
        found = torch.where(up > (below + digit) / 2 * scale.abs(), float(digit), found)
    return found


class Grid(FDBStack):
    """``y = W x`` with the levels of one scale a group."""

    def __init__(self, rows: int, cols: int, levels: tuple[int, ...]) -> None:
        super().__init__(rows, cols, 2)  # two planes hold any of these digits
        self.levels = levels
        self.alphas = nn.Parameter(torch.ones_like(self.latent[..., :1]))

    def weight(self) -> Tensor:
        with torch.no_grad():
            unit, c = stack_codes(self.alphas)
        value: Tensor = _Quantize.apply(self.latent, self.alphas, unit * c, self.levels)
        return value.flatten(1)[:, : self.cols]

    @torch.no_grad()
    def fit(self, weight: Tensor, importance: Tensor | None = None) -> None:
        """Latents from ``weight [rows, cols]``; scales by least squares in turn with the nearest
        level, errors weighted by ``importance [cols]``, of either sign where levels have one."""
        shape = (-1, *self.latent.shape[1:])
        grouped = _padded(weight.float(), self.latent.numel() // self.rows).view(shape)
        columns = torch.ones_like(weight[0]) if importance is None else importance
        columns = columns.clamp_min(1e-4 * columns.mean()).float()
        columns = _padded(columns[None], grouped[0].numel()).view(shape)
        energy = (grouped.square() * columns).sum(-1, keepdim=True)
        rms = (energy / columns.sum(-1, keepdim=True)).sqrt().clamp_min(1e-6)
        best, least = rms, torch.full_like(rms, torch.inf)
        signs = (1,) if self.levels[0] == -self.levels[-1] else (1, -1)
        for factor in (sign * f for sign in signs for f in _FACTORS):
            scale = rms * factor
            for _ in range(ROUNDS):
                digit = nearest(grouped, scale, self.levels)
                power = (digit.square() * columns).sum(-1, keepdim=True)
                found = (digit * grouped * columns).sum(-1, keepdim=True) / power
                scale = torch.where((power > 0) & (found * factor > 0), found, scale)
            off = grouped - scale * nearest(grouped, scale, self.levels)
            error = (off.square() * columns).sum(-1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        assign(self.latent, grouped)
        assign(self.alphas, best)
        project_stack(self)


def _padded(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))


def make_matrix(grid: str, rows: int, cols: int) -> FDBLinear | Grid:
    """A matrix of one of ``GRIDS``, to be fitted."""
    return FDBLinear(rows, cols) if grid == "fdb" else Grid(rows, cols, LEVELS[grid])


@torch.no_grad()
def fitted(grid: str, plain: Dense, importance: Tensor | None = None) -> FDBLinear | Grid:
    """The matrix ``plain`` in a grid, by least squares, on its device."""
    weight = plain.weight.detach().float()
    made = make_matrix(grid, *weight.shape).to(weight.device)
    if isinstance(made, Grid):
        made.fit(weight, importance)
    else:
        start = "least-squares" if importance is None else "weighted"
        made.load(weight, *fit_scales(weight, importance, start))
    return made


def in_grid(student: Decoder, teacher: Decoder, grid: str, seen: Mapping[str, Tensor]) -> Decoder:
    """``student`` with all matrices of its layers in a grid, fitted to the teacher's; ``seen`` has
    the mean square of every matrix's inputs."""
    for i, (layer, theirs) in enumerate(zip(student.layers, teacher.layers, strict=True)):
        assert isinstance(layer, Layer) and isinstance(theirs, Layer)
        for name, plain in theirs.weights().items():
            if isinstance(plain, Dense):
                layer.put(name, fitted(grid, plain, seen[f"layers.{i}.{name}"]))
    return student
