"""What makes logits of a model's last hidden states."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .interpreter import softcap


class Head(NamedTuple):
    """A matrix ``[vocabulary, hidden]``, and the cap of what it gives, if there is one.

    A loss takes them a piece of a text at a time, and their gradients itself.
    """

    weight: Tensor
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., vocabulary]`` of ``hidden [..., hidden]``, in the matrix's type; with a cap in
        float32."""
        products = F.linear(hidden.to(self.weight.dtype), self.weight)
        return products if self.cap is None else softcap(products.float(), self.cap)

    def by_products(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient by the products, from that by ``logits``."""
        if self.cap is None:
            return gradient
        return gradient * (1 - (logits.float() / self.cap).square()).to(gradient.dtype)
