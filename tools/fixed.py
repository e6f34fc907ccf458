"""Matrices whose planes stay while their scales learn, in a byte a weight.

Planes that are read off latents turn as scales move, and many latents lie near a threshold: what
a step gains by the scales is lost by planes that nobody chose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import decode_latent, encode_latent
from .stacks import FDBStack, decode_stack, encode_stack, stack_codes
from .student import FDBLinear


class Fixed(nn.Module):
    """Stands for ``module``, whose latents are kept as a checkpoint stores them."""

    stored: Tensor

    def __init__(self, module: FDBLinear | FDBStack) -> None:
        super().__init__()
        self.module = module
        self.held: Tensor | None = None
        with torch.no_grad():
            unit, c = self._codes()
            if isinstance(module, FDBStack):
                stored = encode_stack(module.latent, unit, c)
            else:
                stored = encode_latent(module.latent, *(unit * c).split(1, dim=-1))
        self.register_buffer("stored", stored)
        module.latent = nn.Parameter(torch.empty(0, device=stored.device), requires_grad=False)

    def scales(self) -> list[nn.Parameter]:
        """What learns."""
        module = self.module
        return [module.alphas] if isinstance(module, FDBStack) else [module.alpha1, module.alpha2]

    def _codes(self) -> tuple[Tensor, Tensor]:
        """Units and integer codes of the scales, as ``stack_codes`` gives them."""
        if isinstance(self.module, FDBStack):
            return stack_codes(self.module.alphas.detach())
        unit, c1, c2 = self.module.codes()
        return unit, torch.cat((c1, c2), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight() if self.held is None else self.held)

    def weight(self) -> Tensor:
        """Float32 ``[rows, cols]``, with the scales' gradients straight through their rounding."""
        alphas = torch.cat(self.scales(), dim=-1)
        unit, c = self._codes()
        rounded = unit.repeat_interleave(2, dim=-1)[..., : c.shape[-1]] * c
        used = alphas + (rounded - alphas).detach()
        parts = [torch.where(b, used[..., j, None], 0.0) for j, b in enumerate(self._planes())]
        return torch.stack(parts).sum(dim=0).flatten(1)[:, : self.module.cols]

    @torch.no_grad()
    def hold(self) -> None:
        """Work the weights out once for all passes until ``release``: 8 bytes a weight."""
        self.held = self.weight().requires_grad_()

    def release(self) -> None:
        """Give the gradients of the held weights to the scales."""
        held, self.held = self.held, None
        if held is not None and held.grad is not None:
            self.weight().backward(held.grad)

    def _planes(self) -> list[Tensor]:
        """Bool ``[rows, groups, 64]`` of each plane."""
        if isinstance(self.module, FDBStack):
            n = self.module.alphas.shape[-1]
            bits = range(8 - n, 8)
        else:
            bits = range(7, 5, -1)
        return [(self.stored >> bit & 1) > 0 for bit in bits]

    @torch.no_grad()
    def loosened(self) -> FDBLinear | FDBStack:
        """The module again, with latents where they were in their cells."""
        unit, c = self._codes()
        module = self.module
        if isinstance(module, FDBStack):
            latent = decode_stack(self.stored, unit, c)
        else:
            latent = decode_latent(self.stored, *(unit * c).split(1, dim=-1))
        module.latent = nn.Parameter(latent, requires_grad=False)
        return module
