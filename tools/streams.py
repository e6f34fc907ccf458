"""Hidden states of a text between two layers: a layer at a time needs no more of a model.

A stream, float32 ``[sequences, tokens, hidden]``, is on the GPU where it has room and else a
``.npy`` file. A file appears under its name when it is complete, so that what is there after a kill
can be gone on from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray
from torch import Tensor

from edgedb.errors import EdgeDBError

from .decoder import Layer
from .interpreter import Turns

ROOM = 0.1  # of a GPU's free memory, that a stream may take; a layer's training has five


def has_room(size_bytes: int, device: torch.device) -> bool:
    """Whether a stream of that size is to be on the device rather than on disk."""
    return device.type == "cuda" and size_bytes <= ROOM * torch.cuda.mem_get_info(device)[0]


class Stream:
    """A complete stream, which gives batches of ``batch`` sequences on ``device``."""

    def __init__(
        self, path: Path, states: Tensor | NDArray[Any], device: torch.device, batch: int
    ) -> None:
        """``path``: where it is on disk, or would be. See ``make`` and ``open``."""
        self.path, self._states, self.device, self.batch = path, states, device, batch

    @classmethod
    def open(cls, path: Path, device: torch.device, batch: int) -> Stream:
        """The stream of a file. Raises ``EdgeDBError`` if it cannot be read."""
        try:
            states = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise EdgeDBError(f"{path}: cannot be read ({error})") from None
        if has_room(states.nbytes, device):
            return cls(path, torch.from_numpy(np.array(states)).to(device), device, batch)
        return cls(path, states, device, batch)

    @classmethod
    @torch.no_grad()
    def make(
        cls,
        path: Path,
        shape: tuple[int, ...],
        parts: Iterable[Tensor],
        device: torch.device,
        batch: int,
    ) -> Stream:
        """A new stream of ``shape`` from its consecutive sequences, in memory or on disk."""
        if not has_room(4 * int(np.prod(shape)), device):
            write(path, shape, parts)
            return cls.open(path, device, batch)
        states = torch.empty(shape, device=device)
        at = 0
        for part in parts:
            states[at : at + len(part)] = part
            at += len(part)
        return cls(path, states, device, batch)

    def to(self, path: Path, step: Callable[[Tensor], Tensor]) -> Stream:
        """A new stream of what ``step`` makes of every batch."""
        parts = (step(x) for x in self.batches())
        return Stream.make(path, self.shape, parts, self.device, self.batch)

    def through(self, path: Path, layer: Layer, turns: Turns) -> Stream:
        """A new stream, of what a layer makes of it."""
        return self.to(path, lambda x: layer(x, turns))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sequences, tokens of each, width."""
        return tuple(self._states.shape)

    def __len__(self) -> int:
        """Sequences."""
        return self.shape[0]

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Some sequences ``[n, tokens, hidden]``."""
        if isinstance(self._states, Tensor):
            return self._states[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(self._states[rows]).to(self.device)

    def batches(self, sequences: int | None = None) -> Iterator[Tensor]:
        """The first so many sequences, or all, in order."""
        n = len(self) if sequences is None else min(sequences, len(self))
        for start in range(0, n, self.batch):
            yield self.take(np.arange(start, min(start + self.batch, n)))

    def save(self) -> None:
        """Have it on disk. Raises ``EdgeDBError`` if there is no room."""
        if isinstance(self._states, Tensor):
            write(self.path, self.shape, self.batches())

    def remove(self) -> None:
        """Have it on disk no more."""
        self.path.unlink(missing_ok=True)


def write(path: Path, shape: tuple[int, ...], parts: Iterable[Tensor]) -> None:
    """Write a ``.npy`` file of ``shape`` from consecutive parts, in one step for the reader.

    Raises ``EdgeDBError`` if the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # Written, not mapped: under a mapping a full disk would kill the process.
        with partial.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part.float().cpu().numpy()).data)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EdgeDBError(
            f"{path}: {error.strerror}; {4 * int(np.prod(shape)) / 1e9:.1f} GB are needed, less "
            "with fewer --tokens. The same command goes on from here"
        ) from None
