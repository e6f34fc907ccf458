"""What every checkpoint offers: hyper-parameters, a tokenizer, and weights under edgedb's names."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgedb.config import ModelConfig
from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.tokenizer import TokenizerSpec

from .tokenizer_spec import runnable

Float32 = NDArray[np.float32]

# Files up to this size are hashed whole; of larger ones (a 7B checkpoint would take a minute) the
# first such stretch, which holds the header with every tensor's name and shape, and the size.
_HASH_WHOLE_BYTES = 1 << 28


class Source(abc.ABC):
    """A checkpoint on disk. Tensors are read one at a time, as float32.

    ``config_dict`` has the keys of a Hugging Face ``config.json``; ``config`` is what edgedb made
    of it. Subclasses map edgedb's names to the checkpoint's with ``layout``.
    """

    path: Path
    config_dict: Mapping[str, Any]
    config: ModelConfig
    tokenizer_spec: TokenizerSpec

    # edgedb name (without "layers.{i}.") -> checkpoint names whose rows, one after the other, make
    # it up; "{i}" stands for the layer.
    layout: ClassVar[Mapping[str, tuple[str, ...]]]

    @abc.abstractmethod
    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name -> shape, of every tensor in the checkpoint."""

    @abc.abstractmethod
    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        """Rows ``start`` to ``stop`` of one stored tensor, float32, in edgedb's row order."""

    @abc.abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the weights."""

    def stored_names(self, name: str) -> list[str]:
        """Checkpoint names of the parts of edgedb's tensor ``name``, in row order."""
        if name.startswith("layers."):
            _, layer, kind = name.split(".")
            return [part.format(i=layer) for part in self.layout[kind]]
        return list(self.layout[name])

    def tensor(self, name: str, rows: slice | None = None) -> Float32:
        """A weight matrix ``[rows, cols]`` or a norm ``[n]`` by its edgedb name, float32.

        ``rows`` limits what is read (embedding and head of a large vocabulary do not fit in
        memory at once); it works for tensors that the checkpoint stores in one piece.
        """
        shapes = self.stored_shapes()
        parts = self.stored_names(name)
        if rows is None:
            read = [self.read_stored(part, 0, shapes[part][0]) for part in parts]
            return read[0] if len(read) == 1 else np.concatenate(read)
        if len(parts) != 1:
            raise ValueError(f"{name}: rows of a fused tensor cannot be read on their own")
        start, stop, _ = rows.indices(shapes[parts[0]][0])
        return self.read_stored(parts[0], start, stop)

    def fingerprint(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the checkpoint, for the provenance of what is made from it."""
        digest = hashlib.sha256()
        size = 0
        for file in self.files():
            length = file.stat().st_size
            size += length
            with file.open("rb") as stream:
                left = _HASH_WHOLE_BYTES
                while left and (piece := stream.read(min(left, 1 << 22))):
                    digest.update(piece)
                    left -= len(piece)
        whole = all(file.stat().st_size <= _HASH_WHOLE_BYTES for file in self.files())
        return {
            "name": self.path.resolve().name,
            "size_bytes": size,
            "sha256": digest.hexdigest(),
            "hashed": "whole" if whole else "first 256 MiB of each file",
        }

    def check(self) -> None:
        """Compare the checkpoint's tensors with what ``config`` asks for.

        Raises ``FormatError`` for a missing tensor or a wrong shape, ``UnsupportedModelError`` for
        one that the forward pass would not use (a bias, a norm of q and k, an adapter).
        """
        shapes = self.stored_shapes()
        wanted: dict[str, tuple[int, ...]] = {}
        for name, (_, cols) in self.config.linear_shapes().items():
            for part, n_rows in zip(self.stored_names(name), self._part_rows(name), strict=True):
                wanted[part] = (n_rows, cols)
        for name, length in self.config.norm_shapes().items():
            wanted[self.stored_names(name)[0]] = (length,)
        for part, shape in wanted.items():
            if part not in shapes:
                raise FormatError(f"{self.path.name}: tensor {part} is missing")
            if tuple(shapes[part]) != shape:
                raise FormatError(
                    f"{self.path.name}: tensor {part} has shape {list(shapes[part])}, "
                    f"the configuration asks for {list(shape)}"
                )
        for part in shapes:
            if part not in wanted and not self.ignorable(part):
                raise UnsupportedModelError(
                    f"{self.path.name}: tensor {part} has no place in a Llama forward pass"
                )

    def take_tokenizer(self, found: TokenizerSpec) -> None:
        """Make ``tokenizer_spec`` of what the checkpoint says about its tokenizer."""
        self.tokenizer_spec = runnable(found, self.config.vocab_size, self.path.name)

    def ignorable(self, stored: str) -> bool:
        """Whether a tensor that the forward pass does not read may be left out without harm."""
        return self.config.tie_word_embeddings and stored == self.layout["head"][0]

    def _part_rows(self, name: str) -> tuple[int, ...]:
        kind = name.rpartition(".")[2]
        if kind == "attn_qkv":
            return (self.config.q_size, self.config.kv_size, self.config.kv_size)
        if kind == "mlp_gate_up":
            return (self.config.intermediate_size,) * 2
        return (self.config.linear_shapes()[name][0],)
