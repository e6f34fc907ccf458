"""A GGUF model: weights of any type dequantized, rows of q and k put back where they were moved.

llama.cpp's converter interleaves the rows of q and k within each head for some families, whose
rotary embedding there turns neighbours (2i, 2i+1) where Hugging Face's turns (i, i + head_dim/2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import UnsupportedModelError
from ...model.families import family_of
from . import layouts
from .gguf_file import StoredTensor, open_parts
from .gguf_metadata import ROPE_TABLES, config_of
from .gguf_tokenizer import tokenizer_spec
from .names import GGUF
from .source import Float32, Source


class GGUFSource(Source):
    """See ``Source``. The files are mapped; a tensor is dequantized when it is asked for."""

    all_names: ClassVar = GGUF
    all_layouts: ClassVar = layouts.GGUF

    def __init__(self, path: Path) -> None:
        parts = open_parts(path)
        self._files = [part.path for part in parts]
        self.path = self._files[0]
        metadata = parts[0].metadata
        self._tensors: dict[str, StoredTensor] = {}
        for part in parts:
            self._tensors |= part.tensors
        self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        settings, unknown = config_of(
            path.name,
            metadata,
            vocab_size=self._shapes.get("token_embd.weight", (None,))[0],
            tied="output.weight" not in self._shapes,
            tables={name: self._dequantize(name) for name in ROPE_TABLES if name in self._shapes},
        )
        self.read_config(path.name, settings, unknown)
        self.check()
        self.take_tokenizer(tokenizer_spec(self.path.name, metadata))

    def files(self) -> list[Path]:
        return self._files

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        turned = stored.rpartition(".")[0].endswith(("attn_q", "attn_k"))
        if not turned or not family_of(self.config.model_type).interleaved:
            return self._dequantize(stored, start, stop)
        weight = self._dequantize(stored)
        return _unpermute(weight, self.config.head_dim)[start:stop]

    def unreadable(self, stored: str) -> str | None:
        return self._tensors[stored].unreadable()

    def ignorable(self, stored: str) -> bool:
        return stored in ROPE_TABLES  # read into config_dict by then

    def _dequantize(self, stored: str, start: int = 0, stop: int | None = None) -> Float32:
        stop = self._shapes[stored][0] if stop is None else stop
        try:
            return self._tensors[stored].read(start, stop)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.path.name}: tensor {stored} {error}") from None


def _unpermute(weight: Float32, head_dim: int) -> Float32:
    """Rows from (0, half, 1, half + 1, ...) within each head back to 0, 1, 2, ..."""
    heads = weight.reshape(len(weight) // head_dim, head_dim // 2, 2, -1)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weight.shape)
