"""Matrices of any number of planes that learn: more bits where two are not enough.

N planes, ``w = sum_j alpha_j*b_j``, give ``2**N`` levels a group. Planes ``2p`` and ``2p + 1`` are
b1 and b2 of pair p; of an odd number the last is half a pair. Latents, gradients and 8-bit scale
codes are those of ``tools.student``, but signs are free and the nearest level is searched for.

The *code* of a weight has bit j where b_j is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgedb.format.tensors import GROUP

from .codes import MAX_CODE, fake_int8
from .parallel import assign, local

if TYPE_CHECKING:
    from edgedb.format.tensors import PairTensor

MIN_PLANES, MAX_PLANES = 2, 6
# A plane without scale would never be chosen, and without being chosen never get a gradient. A
# scale on its way through zero comes out at this share of the group's largest.
MIN_SHARE = 0.01


def pairs_of(planes: int) -> list[slice]:
    """The planes of every pair; of an odd number the last slice has one."""
    return [slice(first, min(first + 2, planes)) for first in range(0, planes, 2)]


def stack_codes(alphas: Tensor) -> tuple[Tensor, Tensor]:
    """``unit [rows, 1, pairs]`` and integer codes ``[rows, groups, N]`` (as floats) of the format.

    The largest scale of a row's pair gets code 127, or the largest sum of two scales 126: rounding
    both up makes 127 of that, so ``|c1 + c2| <= 127`` whatever the signs.
    """
    units, codes = [], []
    for pair in pairs_of(alphas.shape[-1]):
        scales = alphas[..., pair]
        unit = scales.abs().amax(dim=(1, 2)) / MAX_CODE
        if scales.shape[-1] == 2:
            unit = torch.maximum(unit, scales.sum(-1).abs().amax(dim=1) / (MAX_CODE - 1))
        safe = unit.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None]
        codes.append((scales / safe).round().clamp(-MAX_CODE, MAX_CODE))
        units.append(unit)
    return torch.stack(units, dim=-1)[:, None], torch.cat(codes, dim=-1)


def level(unit: Tensor, c: Tensor, code: int) -> Tensor:
    """Value of ``code`` in every group ``[rows, groups, 1]``, rounded as ``dequantize`` does."""
    value = torch.zeros_like(c[..., :1])
    for i, pair in enumerate(pairs_of(c.shape[-1])):
        digits = torch.zeros_like(value)
        for plane in range(pair.start, pair.stop):
            if code >> plane & 1:
                digits = digits + c[..., plane, None]
        value = value + unit[..., i, None] * digits
    return value


def nearest(latent: Tensor, unit: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Code (uint8) and value of the level nearest to ``latent [rows, groups, 64]``."""
    distance = latent.abs()
    code = torch.zeros_like(latent, dtype=torch.uint8)
    value = torch.zeros_like(latent)
    for i in range(1, 1 << c.shape[-1]):
        candidate = level(unit, c, i)
        off = (latent - candidate).abs()
        closer = off < distance
        distance = torch.where(closer, off, distance)
        code = torch.where(closer, i, code)
        value = torch.where(closer, candidate, value)
    return code, value


def reach(unit: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest level of every group ``[rows, groups, 1]``."""
    scales = c * unit.repeat_interleave(2, dim=-1)[..., : c.shape[-1]]
    return scales.clamp_max(0).sum(-1, True), scales.clamp_min(0).sum(-1, True)


class _Quantize(torch.autograd.Function):
    """Latents to their nearest level, straight through inside the grid and back into it."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, alphas: Tensor, unit: Tensor, c: Tensor) -> Tensor:
        code, value = nearest(latent, unit, c)
        low, high = reach(unit, c)
        ctx.save_for_backward(latent, code, low, high)
        ctx.planes = c.shape[-1]
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        latent, code, low, high = ctx.saved_tensors
        passes = ((latent >= low) | (grad < 0)) & ((latent <= high) | (grad > 0))
        scales = [
            torch.where((code >> plane & 1) > 0, grad, 0.0).sum(-1, True)
            for plane in range(ctx.planes)
        ]
        return torch.where(passes, grad, 0.0), torch.cat(scales, dim=-1), None, None


class Stack(nn.Module):
    """A matrix ``[rows, cols]`` of so many planes."""

    def __init__(self, rows: int, cols: int, planes: int) -> None:
        super().__init__()
        if not MIN_PLANES <= planes <= MAX_PLANES:
            raise ValueError(f"{planes} planes: expected {MIN_PLANES} to {MAX_PLANES}")
        groups = -(-cols // GROUP)
        self.rows, self.cols, self.planes = rows, cols, planes
        self.latent = nn.Parameter(torch.zeros(rows, groups, GROUP))
        self.alphas = nn.Parameter(torch.ones(rows, groups, planes))

    def weight(self) -> Tensor:
        """The matrix that is multiplied with, float32."""
        with torch.no_grad():
            unit, c = stack_codes(self.alphas)
        value: Tensor = _Quantize.apply(self.latent, self.alphas, unit, c)
        return value.flatten(1)[:, : self.cols]

    def load(self, weight: Tensor, fitted: PairTensor) -> None:
        """Scales and planes of ``fitted``, latents from ``weight``: see ``latents_within``."""
        self.fill(*latents_within(weight, fitted))

    @torch.no_grad()
    def fill(self, latent: Tensor, alphas: Tensor) -> None:
        """Take whole latents and scales ``[rows, groups, N]``."""
        assign(self.latent, latent)
        assign(self.alphas, alphas)
        project_stack(self)


class FDBStack(Stack):
    """``y = W x``, as ``FDBLinear`` has it for one pair."""

    def __init__(self, rows: int, cols: int, planes: int) -> None:
        super().__init__(rows, cols, planes)
        self.quantize_input = False

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input:
            x = fake_int8(x)
        return F.linear(x, self.weight())


@torch.no_grad()
def project_stack(stack: Stack) -> None:
    """No scale at zero, after an optimizer step."""
    alphas = local(stack.alphas)
    size = alphas.abs()
    least = MIN_SHARE * size.amax(dim=-1, keepdim=True).clamp_min(1e-6)
    alphas.copy_(torch.where(alphas < 0, -1.0, 1.0) * torch.maximum(size, least))


def cells(unit: Tensor, c: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value of each ``code [rows, groups, 64]``, and how far its cell reaches below and above.

    The outermost cells have no end and are given the reach of their other side.
    """
    values = torch.cat([level(unit, c, i) for i in range(1 << c.shape[-1])], dim=-1)
    ordered, order = values.sort(dim=-1)
    gaps = ordered.diff(dim=-1) / 2
    below = torch.cat((gaps[..., :1], gaps), dim=-1)
    above = torch.cat((gaps, gaps[..., -1:]), dim=-1)
    place = order.argsort(dim=-1)
    index = code.long()
    return (
        values.gather(-1, index),
        below.gather(-1, place).gather(-1, index),
        above.gather(-1, place).gather(-1, index),
    )


@torch.no_grad()
def latents_within(weight: Tensor, fitted: PairTensor) -> tuple[Tensor, Tensor]:
    """Latents ``[rows, groups, 64]`` for the planes of ``fitted``, and its scales ``[..., N]``.

    The latents are ``weight [rows, cols]`` where the planes are its nearest level. A fit that
    weighs errors by what follows does not choose that everywhere: such a latent starts at the edge
    of the cell that the fit chose.
    """
    from edgedb.format.packing import unpack_half, unpack_planes

    device = weight.device
    shape = (fitted.rows, -(-fitted.cols // GROUP), GROUP)
    padded = (0, shape[1] * GROUP - fitted.cols)
    alphas, code = [], torch.zeros(shape, dtype=torch.uint8, device=device)
    size = (fitted.rows, fitted.cols)
    planes: list[tuple[Any, Any, Any]] = []  # bits, codes, row scale
    for blocks, row_scale in zip(fitted.blocks, fitted.row_scale, strict=False):
        b1, b2, c1, c2 = unpack_planes(blocks, *size)
        planes += [(b1, c1, row_scale), (b2, c2, row_scale)]
    if fitted.half is not None:
        planes.append((*unpack_half(fitted.half, *size), fitted.row_scale[-1]))
    for j, parts in enumerate(planes):
        b, c, row_scale = (torch.from_numpy(part.copy()).to(device) for part in parts)
        alphas.append(row_scale[:, None] * c)
        code |= F.pad(b.to(torch.uint8) << j, padded).view(shape)
    scales = torch.stack(alphas, dim=-1).float()
    value, below, above = cells(*stack_codes(scales), code)
    goal = F.pad(weight.float(), padded).view(shape)
    return goal.clamp(value - 0.9 * below, value + 0.9 * above), scales


def positions_of(planes: int) -> int:
    """A latent is stored as its code and a position inside its cell, of this many: one byte."""
    return 256 >> planes


def encode_stack(latent: Tensor, unit: Tensor, c: Tensor) -> Tensor:
    """Latents ``[rows, groups, 64]`` as one byte: the code, then the position in its cell."""
    positions = positions_of(c.shape[-1])
    code, _ = nearest(latent, unit, c)
    value, below, above = cells(unit, c, code)
    off = latent - value
    share = off / torch.where(off < 0, below, above).clamp_min(torch.finfo(torch.float32).tiny)
    place = ((share + 1) * (positions / 2)).floor().clamp(0, positions - 1)
    return code * positions + place.to(torch.uint8)


def decode_stack(stored: Tensor, unit: Tensor, c: Tensor) -> Tensor:
    """The inverse of ``encode_stack``, up to half a position; the matrix is the same."""
    positions = positions_of(c.shape[-1])
    code = torch.div(stored, positions, rounding_mode="floor")
    value, below, above = cells(unit, c, code)
    share = ((stored % positions).float() + 0.5) / (positions / 2) - 1
    return value + share * torch.where(share < 0, below, above)


@torch.no_grad()
def pack_stack(stack: Stack) -> PairTensor:
    """The packed form; it stands for exactly ``stack.weight()``."""
    from edgedb.format.packing import pack_half, pack_planes
    from edgedb.format.tensors import PairTensor

    unit, c = stack_codes(stack.alphas)
    code = nearest(stack.latent, unit, c)[0].flatten(1)[:, : stack.cols].cpu().numpy()
    codes = c.to(torch.int8).cpu().numpy()
    bits = [(code >> j & 1).astype(bool) for j in range(stack.planes)]
    scales = [np.ascontiguousarray(codes[:, :, j]) for j in range(stack.planes)]
    full = stack.planes // 2
    blocks = [
        pack_planes(*bits[2 * p : 2 * p + 2], *scales[2 * p : 2 * p + 2]) for p in range(full)
    ]
    half = pack_half(bits[-1], scales[-1]) if stack.planes % 2 else None
    row_scale = unit[:, 0].t().contiguous().cpu().numpy()
    return PairTensor(np.stack(blocks), row_scale, stack.rows, stack.cols, half)
