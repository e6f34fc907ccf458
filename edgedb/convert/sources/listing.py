"""Which files of a repository make a model, by their names alone: none is read or executed here.

Files of pickled tensors (``.bin``, ``.pt``) and code are on no list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...display import quoted
from ...errors import EdgeDBError, FormatError, UnsupportedModelError

CONFIG, INDEX, WHOLE = "config.json", "model.safetensors.index.json", "model.safetensors"
TOKENIZERS = ("tokenizer.json", "tekken.json", "tokenizer.model")
# What a folder may have beside its weights; what of it is there is read.
BESIDE_WEIGHTS = (
    CONFIG,
    INDEX,
    *TOKENIZERS,
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
GGUF_PART = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
# Of several GGUF files of one model: those that lost least, best first.
_LEAST_LOST = ("bf16", "f16", "f32", "q8_0")
_NAMED = 8  # files that an error names, of any number


@dataclass(frozen=True)
class Choice:
    """What is taken of a repository: a ``dbb``, a ``folder`` (its weights are told by its index)
    or a ``gguf``; ``main`` is the file to open, of a folder its ``config.json``."""

    kind: Literal["dbb", "folder", "gguf"]
    main: str
    files: tuple[str, ...]


def choose(names: Collection[str], wanted: str | None, convert: bool) -> Choice:
    """What to take of the files ``names``: the file ``wanted``, or what loses least.

    ``convert``: whether something was asked of the conversion, which no ``.dbb`` there may have.
    Raises ``EdgeDBError`` where that is not one, ``UnsupportedModelError`` where there is none.
    """
    dbbs = sorted(name for name in names if name.endswith(".dbb"))
    ggufs = _whole_ggufs(names)
    if wanted is not None:
        if wanted not in (*dbbs, *ggufs):
            there = _list([*dbbs, *ggufs]) or "none of these is there"
            raise EdgeDBError(f"--file {quoted(wanted)} is no .dbb or GGUF of it: {there}")
        if convert and wanted in dbbs:
            raise EdgeDBError(f"{quoted(wanted)} is taken as it is: leave out --bits")
        return _single(wanted, ggufs)
    if dbbs and not convert:
        if len(dbbs) > 1:
            raise EdgeDBError(f"it has {len(dbbs)} model files, choose: --file {_list(dbbs)}")
        return _single(dbbs[0], ggufs)
    weights = WHOLE in names or INDEX in names or any(map(_SHARD.fullmatch, names))
    if CONFIG in names and weights:
        if not any(name in names for name in TOKENIZERS):
            raise UnsupportedModelError(f"it has no tokenizer: none of {', '.join(TOKENIZERS)}")
        return Choice("folder", CONFIG, tuple(name for name in BESIDE_WEIGHTS if name in names))
    if not ggufs:
        raise UnsupportedModelError(
            "it has no .dbb, no GGUF, and no config.json with safetensors; files of other kinds "
            "(.bin, .pt) are not read"
        )
    return _single(_best(ggufs), ggufs)


def _single(name: str, ggufs: Mapping[str, tuple[str, ...]]) -> Choice:
    if name in ggufs:
        return Choice("gguf", name, ggufs[name])
    return Choice("dbb", name, (name,))


def _best(ggufs: Mapping[str, tuple[str, ...]]) -> str:
    if len(ggufs) == 1:
        return next(iter(ggufs))
    for kind in _LEAST_LOST:
        found = [name for name in ggufs if re.search(rf"(?i)[-._]{kind}\b", name)]
        if len(found) == 1:
            return found[0]
    raise EdgeDBError(f"it has {len(ggufs)} GGUF files, choose: --file {_list(ggufs)}")


def _list(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(quoted(name) for name in list(names)[:_NAMED]) + more


def _whole_ggufs(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """First file -> all files, of each GGUF model that is complete."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(names):
        part = GGUF_PART.fullmatch(name)
        if part is None:
            if name.endswith(".gguf") and not name.lower().startswith("mmproj"):
                found[name] = (name,)
        elif int(part[2]) == 1 and int(part[3]) <= len(names):
            files = (f"{part[1]}-{i:05}-of-{part[3]}.gguf" for i in range(1, int(part[3]) + 1))
            parts = tuple(file for file in files if file in names)
            if len(parts) == int(part[3]):
                found[name] = parts
    return found


def weight_files(folder: str, names: Collection[str], index: Mapping[str, Any]) -> list[str]:
    """Names of the files that hold a checkpoint's weights, out of those of its ``folder``.

    index: the content of ``model.safetensors.index.json``, empty if there is none. Raises
    ``FormatError`` where one is missing.
    """
    if WHOLE in names:  # as in transformers, whatever else is there
        return [WHOLE]
    files = _indexed_shards(folder, index) if index else _numbered_shards(names)
    if not files:
        raise FormatError(
            f"{folder}: no {WHOLE}; a checkpoint of .bin files must be saved as safetensors first"
        )
    for file in files:
        if file not in names:
            raise FormatError(f"{folder}: shard {file} is missing")
    return files


def _indexed_shards(folder: str, index: Mapping[str, Any]) -> list[str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{folder}: {INDEX} has no weight_map")
    # Names come from a downloaded file: keep them inside the directory.
    return sorted({re.split(r"[/\\]", str(name))[-1] for name in weight_map.values()})


def _numbered_shards(names: Collection[str]) -> list[str]:
    """Shards whose names say how many there are."""
    numbered = [_SHARD.fullmatch(name) for name in sorted(names)]
    count = next((found[1] for found in numbered if found), "0")
    return [f"model-{i:05}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
