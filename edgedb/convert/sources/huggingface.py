"""A Hugging Face model directory: config.json, safetensors in one or many shards, tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ...model.checkpoint_config import read_config
from ...model.config import ModelConfig
from ...model.families import family_of
from . import layouts
from .folder import exists, read_json
from .huggingface_tokenizer import tokenizer_spec
from .listing import CONFIG, INDEX, WHOLE, weight_files
from .mxfp4 import Mxfp4Tensors
from .names import HUGGING_FACE, SYNONYMS, Names
from .safetensors import SafetensorsFile
from .source import Float32, Source
from .wrapper import text_settings, text_tensors

_MASKS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


# What holds a tensor, and under which name.
Stored = tuple[SafetensorsFile | Mxfp4Tensors, str]


def folder_config(file: Path) -> ModelConfig:
    """What a ``config.json`` says, of a folder that need have no weights.

    Raises ``FormatError`` for a damaged one, ``UnsupportedModelError`` for a model that does not
    run.
    """
    fold, _ = read_config(text_settings(read_json(file, required=True)))
    return fold.config


class HuggingFaceSource(Source):
    """See ``Source``; a missing file is a ``FormatError`` that names it."""

    all_names: ClassVar = HUGGING_FACE
    all_layouts: ClassVar = layouts.HUGGING_FACE

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = read_json(path / CONFIG, required=True)
        settings = text_settings(whole)
        family_of(settings.get("model_type", "?"))  # before any file that only it would have
        self._shards = {file.name: SafetensorsFile(file) for file in _shard_files(path)}
        plain = {name: (shard, name) for shard in self._shards.values() for name in shard.shapes}
        packed = Mxfp4Tensors(plain)
        self._stored: dict[str, Stored] = {name: (packed, name) for name in packed.shapes}
        self._stored |= {name: plain[name] for name in plain.keys() - packed.parts()}
        self._stored = text_tensors(whole.get("model_type"), self._stored)
        self._stored = _with_base(self._stored, self.all_names[settings["model_type"]])
        for theirs, ours in SYNONYMS.get(settings["model_type"], {}).items():
            self._stored = {n.replace(theirs, ours): s for n, s in self._stored.items()}
        self.read_config(CONFIG, settings, [])
        self.check()
        found = tokenizer_spec(path, self.config_dict, self.config.vocab_size)
        self.take_tokenizer(found)

    def files(self) -> list[Path]:
        return sorted(shard.path for shard in self._shards.values())

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shard.shapes[own] for name, (shard, own) in self._stored.items()}

    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        shard, own = self._stored[stored]
        return shard.read(own, start, stop)

    def unreadable(self, stored: str) -> str | None:
        shard, own = self._stored[stored]
        return shard.unreadable(own)

    def ignorable(self, stored: str) -> bool:
        # Old checkpoints carry the rotary frequencies, which follow from rope_theta, and the mask
        # of causal attention, which is no vector as a bias is.
        mask = stored.endswith(_MASKS) and len(self.stored_shapes()[stored]) != 1
        return mask or stored.endswith(".rotary_emb.inv_freq")


def _with_base(stored: dict[str, Stored], names: Names) -> dict[str, Stored]:
    """Checkpoints of a model without its head name tensors without what stands for that model."""
    (embedding,), (head,) = names["embedding"], names["head"]
    base = embedding.partition(".")[0] + "."
    if any(name.startswith(base) for name in stored):
        return stored
    return {name if name == head else base + name: found for name, found in stored.items()}


def _shard_files(path: Path) -> list[Path]:
    names = [name for name in os.listdir(path) if exists(path / name)]
    index = {} if WHOLE in names else read_json(path / INDEX)
    return [path / name for name in weight_files(path.name, names, index)]
