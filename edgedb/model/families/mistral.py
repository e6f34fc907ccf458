"""Mistral 7B (arXiv 2310.06825) and Zephyr: Llama whose queries see the last keys only."""

from __future__ import annotations

from .llama import final, first, head, layer

__all__ = ["final", "first", "head", "layer"]
