"""A model a layer at a time: no more than one layer of the teacher and one of the student exist."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedb.errors import EdgeDBError
from edgedb.model.families import program_of

from .decoder import Ends, Layer, WeightSource, dense, fill
from .stacks import FDBStack
from .student import FDBLinear


class Teacher:
    """The full-precision model of a checkpoint, whose layers are read as they are asked for."""

    def __init__(self, source: WeightSource, device: torch.device) -> None:
        self.source, self.device = source, device
        self.program = program_of(source.config)
        self.ends = Ends(source.config)
        fill(self.ends.weights(), source)
        self.ends.requires_grad_(False).to(device)

    def layer(self, index: int) -> Layer:
        """A frozen layer, float32."""
        layer = Layer(self.program, index, dense)
        prefix = f"layers.{index}."
        fill({prefix + name: weight for name, weight in layer.weights().items()}, self.source)
        return layer.requires_grad_(False).to(self.device)


def matrices_of(layer: Layer) -> dict[str, FDBLinear | FDBStack]:
    """The matrices of a student's layer, by the names that they have in it, in a pass's order."""
    found = layer.weights().items()
    return {name: m for name, m in found if isinstance(m, FDBLinear | FDBStack)}


def vectors_of(layer: Layer) -> dict[str, nn.Parameter]:
    """Norms and biases of a layer, by the names that they have in it."""
    return {name: v for name, v in layer.weights().items() if isinstance(v, nn.Parameter)}


def save_whole(path: Path, state: dict[str, Any]) -> None:
    """Write ``path`` in one step for whoever reads it after a kill.

    Raises ``EdgeDBError`` if the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise EdgeDBError(
            f"{path}: cannot be written ({error}); is the disk full? "
            "The same command goes on from what was saved before"
        ) from None


def load_whole(path: Path) -> dict[str, Any]:
    """What ``save_whole`` wrote, on the CPU. Raises ``EdgeDBError`` if it is damaged."""
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and key errors of a damaged file
        raise EdgeDBError(f"{path}: cannot be read ({error}); remove {path.parent}") from None
    return found
