"""Checkpoints as the exporter sees them: one interface over Hugging Face directories and GGUF."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import EdgeDBError, FormatError
from .source import Source

__all__ = ["Source", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a checkpoint: a Hugging Face directory (with config.json) or one ``.gguf`` file, or
    any part of a split one.

    Only headers are read here. Raises ``EdgeDBError`` if there is nothing at ``path``,
    ``FormatError`` for a damaged or incomplete checkpoint (names the tensor), and
    ``UnsupportedModelError`` for a model that the forward pass cannot run (names the feature).
    """
    try:
        return _open(Path(path))
    except OSError as error:  # no permission, a bad disk, a file that has gone meanwhile
        raise EdgeDBError(f"{error.filename or path}: {error.strerror or error}") from None


def _open(path: Path) -> Source:
    if os.path.isdir(path):
        from .huggingface import HuggingFaceSource

        return HuggingFaceSource(path)
    if not os.path.isfile(path):
        raise EdgeDBError(f"{path}: no such file or directory{_download(path)}")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise FormatError(
            f"{path}: neither a Hugging Face directory nor a GGUF file"
            + ("; pass the directory that holds it" if path.suffix == ".safetensors" else "")
        )
    from .gguf import GGUFSource

    return GGUFSource(path)


def _download(path: Path) -> str:
    """How to get it, if it may be the name of a model on the hub."""
    if path.is_absolute() or len(path.parts) != 2 or path.suffix in (".gguf", ".safetensors"):
        return ""
    return f"; if that is a model on the hub: edgedb pull {path}"
