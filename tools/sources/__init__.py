"""Checkpoints as the exporter sees them: one interface over Hugging Face directories and GGUF."""

from __future__ import annotations

from pathlib import Path

from edgedb.errors import EdgeDBError, FormatError

from .source import Source

__all__ = ["Source", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a checkpoint: a Hugging Face directory (with config.json) or one ``.gguf`` file.

    Only headers are read here. Raises ``EdgeDBError`` if there is nothing at ``path``,
    ``FormatError`` for a damaged or incomplete checkpoint (names the tensor), and
    ``UnsupportedModelError`` for a model that the forward pass cannot run (names the feature).
    """
    path = Path(path)
    if path.is_dir():
        from .huggingface import HuggingFaceSource

        return HuggingFaceSource(path)
    if not path.is_file():
        raise EdgeDBError(f"{path}: no such file or directory")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise FormatError(
            f"{path}: neither a Hugging Face directory nor a GGUF file"
            + ("; pass the directory that holds it" if path.suffix == ".safetensors" else "")
        )
    from .gguf import GGUFSource

    return GGUFSource(path)
