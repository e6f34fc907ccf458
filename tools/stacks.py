"""Matrices in stacked pairs of planes that learn: more bits where two are not enough.

P pairs, ``w = sum_p alpha1_p*b1_p + alpha2_p*b2_p``, give ``4**P`` levels a group. Latents,
gradients and 8-bit scale codes are those of ``tools.student``, with nearest level by search.

The *code* of a weight has bit ``2p`` for b1 of pair p and bit ``2p + 1`` for its b2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgedb.format.tensors import GROUP

from .parallel import assign, local
from .student import MAX_CODE, fake_int8

if TYPE_CHECKING:
    from edgedb.format.tensors import PairTensor

MAX_PAIRS = 3
# A plane without scale would never be chosen, and without being chosen never get a gradient.
MIN_SHARE = 0.01
# Latents are stored as the code and a position inside its cell, of this many.
POSITIONS = {1: 64, 2: 16, 3: 4}


def stack_codes(alphas: Tensor) -> tuple[Tensor, Tensor]:
    """``unit [rows, 1, P]`` and integer codes ``[rows, groups, 2P]`` (as floats) of the format.

    The largest scale of a row's pair gets code 127, or the largest sum of two scales 126: rounding
    both up makes 127 of that, so ``|c1 + c2| <= 127`` whatever the signs.
    """
    scales = alphas.unflatten(-1, (alphas.shape[-1] // 2, 2))
    sums = scales.sum(-1).abs().amax(dim=1) / (MAX_CODE - 1)
    unit = torch.maximum(scales.abs().amax(dim=(1, 3)) / MAX_CODE, sums)[:, None]
    safe = unit.clamp_min(torch.finfo(torch.float32).tiny).repeat_interleave(2, dim=-1)
    return unit, (alphas / safe).round().clamp(-MAX_CODE, MAX_CODE)


def level(unit: Tensor, c: Tensor, code: int) -> Tensor:
    """Value of ``code`` in every group ``[rows, groups, 1]``, rounded as ``dequantize`` does."""
    value = torch.zeros_like(c[..., :1])
    for pair in range(unit.shape[-1]):
        digits = torch.zeros_like(value)
        for plane in (2 * pair, 2 * pair + 1):
            if code >> plane & 1:
                digits = digits + c[..., plane, None]
        value = value + unit[..., pair, None] * digits
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
    scales = c.unflatten(-1, (-1, 2)) * unit[..., None]
    return scales.clamp_max(0).flatten(-2).sum(-1, True), scales.clamp_min(0).flatten(-2).sum(
        -1, True
    )


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
    """A matrix ``[rows, cols]`` of stacked pairs."""

    def __init__(self, rows: int, cols: int, pairs: int) -> None:
        super().__init__()
        if not 1 <= pairs <= MAX_PAIRS:
            raise ValueError(f"{pairs} pairs: expected 1 to {MAX_PAIRS}")
        groups = -(-cols // GROUP)
        self.rows, self.cols, self.pairs = rows, cols, pairs
        self.latent = nn.Parameter(torch.zeros(rows, groups, GROUP))
        # alpha1 and alpha2 of pair 0, then of pair 1, ...
        self.alphas = nn.Parameter(torch.tensor([1.0, -0.5] * pairs).repeat(rows, groups, 1))
        # Fixed at the start, one plus and one minus a pair; a parameter so that it is sharded too.
        self.sign = nn.Parameter(self.alphas.detach().sign(), requires_grad=False)

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
        """Take whole latents and scales ``[rows, groups, 2P]``; scales fix the planes' signs."""
        sign = alphas.sign()
        partner = sign.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        sign = torch.where(sign == 0, -partner, sign)
        # A pair of two zeros becomes plus and minus.
        first = torch.arange(sign.shape[-1], device=sign.device) % 2 == 0
        sign = torch.where(sign == 0, torch.where(first, 1.0, -1.0), sign)
        assign(self.latent, latent)
        assign(self.alphas, alphas)
        assign(self.sign, sign)
        project_stack(self)


class FDBStack(Stack):
    """``y = W x``, as ``FDBLinear`` has it for one pair."""

    def __init__(self, rows: int, cols: int, pairs: int) -> None:
        super().__init__(rows, cols, pairs)
        self.quantize_input = False

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input:
            x = fake_int8(x)
        return F.linear(x, self.weight())


@torch.no_grad()
def project_stack(stack: Stack) -> None:
    """Back to the signs of the start, and no scale at zero, after an optimizer step."""
    alphas, sign = local(stack.alphas), local(stack.sign)
    least = MIN_SHARE * alphas.abs().amax(dim=-1, keepdim=True).clamp_min(1e-6)
    alphas.copy_(sign * torch.maximum(alphas * sign, least))


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
    """Latents ``[rows, groups, 64]`` for the planes of ``fitted``, and its scales ``[..., 2P]``.

    The latents are ``weight [rows, cols]`` where the planes are its nearest level. A fit that
    weighs errors by what follows does not choose that everywhere: such a latent starts at the edge
    of the cell that the fit chose.
    """
    from edgedb.format.packing import unpack_planes

    device = weight.device
    shape = (fitted.rows, -(-fitted.cols // GROUP), GROUP)
    padded = (0, shape[1] * GROUP - fitted.cols)
    alphas, code = [], torch.zeros(shape, dtype=torch.uint8, device=device)
    for pair in range(fitted.pairs):
        found = unpack_planes(fitted.blocks[pair], fitted.rows, fitted.cols)
        b1, b2, c1, c2 = (torch.from_numpy(part.copy()).to(device) for part in found)
        unit = torch.from_numpy(fitted.row_scale[pair].copy()).to(device)[:, None]
        alphas += [unit * c1, unit * c2]
        for bit, plane in ((2 * pair, b1), (2 * pair + 1, b2)):
            code |= F.pad(plane.to(torch.uint8) << bit, padded).view(shape)
    scales = torch.stack(alphas, dim=-1).float()
    value, below, above = cells(*stack_codes(scales), code)
    goal = F.pad(weight.float(), padded).view(shape)
    return goal.clamp(value - 0.9 * below, value + 0.9 * above), scales


def encode_stack(latent: Tensor, unit: Tensor, c: Tensor) -> Tensor:
    """Latents ``[rows, groups, 64]`` as one byte: the code, then the position in its cell."""
    positions = POSITIONS[unit.shape[-1]]
    code, _ = nearest(latent, unit, c)
    value, below, above = cells(unit, c, code)
    off = latent - value
    share = off / torch.where(off < 0, below, above).clamp_min(torch.finfo(torch.float32).tiny)
    place = ((share + 1) * (positions / 2)).floor().clamp(0, positions - 1)
    return code * positions + place.to(torch.uint8)


def decode_stack(stored: Tensor, unit: Tensor, c: Tensor) -> Tensor:
    """The inverse of ``encode_stack``, up to half a position; the matrix is the same."""
    positions = POSITIONS[unit.shape[-1]]
    code = torch.div(stored, positions, rounding_mode="floor")
    value, below, above = cells(unit, c, code)
    share = ((stored % positions).float() + 0.5) / (positions / 2) - 1
    return value + share * torch.where(share < 0, below, above)


@torch.no_grad()
def pack_stack(stack: Stack) -> PairTensor:
    """The packed form; it stands for exactly ``stack.weight()``."""
    from edgedb.format.packing import pack_planes
    from edgedb.format.tensors import PairTensor

    unit, c = stack_codes(stack.alphas)
    code = nearest(stack.latent, unit, c)[0].flatten(1)[:, : stack.cols].cpu().numpy()
    codes = c.to(torch.int8).cpu().numpy()
    blocks = []
    for pair in range(stack.pairs):
        b1, b2 = ((code >> (2 * pair + i) & 1).astype(bool) for i in (0, 1))
        c1, c2 = (np.ascontiguousarray(codes[:, :, 2 * pair + i]) for i in (0, 1))
        blocks.append(pack_planes(b1, b2, c1, c2))
    scales = unit[:, 0].t().contiguous().cpu().numpy()
    return PairTensor(np.stack(blocks), scales, stack.rows, stack.cols)
