"""A Hugging Face model directory: config.json, safetensors in one or many shards, tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...errors import FormatError
from ...model.families import family_of
from . import layouts
from .folder import exists, read_json
from .huggingface_tokenizer import tokenizer_spec
from .mxfp4 import Mxfp4Tensors
from .names import HUGGING_FACE, Names
from .safetensors import SafetensorsFile
from .source import Float32, Source
from .wrapper import text_settings, text_tensors

_MASKS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


# What holds a tensor, and under which name.
Stored = tuple[SafetensorsFile | Mxfp4Tensors, str]


class HuggingFaceSource(Source):
    """See ``Source``; a missing file is a ``FormatError`` that names it."""

    all_names: ClassVar = HUGGING_FACE
    all_layouts: ClassVar = layouts.HUGGING_FACE

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = read_json(path / "config.json", required=True)
        settings = text_settings(whole)
        family_of(settings.get("model_type", "?"))  # before any file that only it would have
        self._shards = {file.name: SafetensorsFile(file) for file in _shard_files(path)}
        plain = {name: (shard, name) for shard in self._shards.values() for name in shard.shapes}
        packed = Mxfp4Tensors(plain)
        self._stored: dict[str, Stored] = {name: (packed, name) for name in packed.shapes}
        self._stored |= {name: plain[name] for name in plain.keys() - packed.parts()}
        self._stored = text_tensors(whole.get("model_type"), self._stored)
        self._stored = _with_base(self._stored, self.all_names[settings["model_type"]])
        self.read_config("config.json", settings, [])
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
    if exists(path / "model.safetensors"):  # as in transformers, whatever else is there
        return [path / "model.safetensors"]
    index = read_json(path / "model.safetensors.index.json")
    files = _indexed_shards(path, index) if index else _numbered_shards(path)
    if not files:
        raise FormatError(
            f"{path.name}: no model.safetensors; "
            "a checkpoint of .bin files must be saved as safetensors first"
        )
    for file in files:
        if not exists(file):
            raise FormatError(f"{path.name}: shard {file.name} is missing")
    return files


def _indexed_shards(path: Path, index: Mapping[str, Any]) -> list[Path]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{path.name}: model.safetensors.index.json has no weight_map")
    # Names come from a downloaded file: keep them inside the directory.
    return [path / Path(name).name for name in sorted(set(map(str, weight_map.values())))]


def _numbered_shards(path: Path) -> list[Path]:
    """Shards whose names say how many there are."""
    numbered = [_SHARD.fullmatch(name) for name in sorted(os.listdir(path))]
    count = next((found[1] for found in numbered if found), "0")
    return [path / f"model-{i:05}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
