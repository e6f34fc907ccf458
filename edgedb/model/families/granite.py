"""Granite 3 (IBM): Llama with multipliers, which the exporter folds into the weights.

The forward pass is Llama's; ``fold`` says where each multiplier goes.
"""

from __future__ import annotations

from .llama import final, first, head, layer

__all__ = ["final", "first", "head", "layer"]
