"""Configurations of models that are not on this disk, or of which there is nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EdgeDBError, UnsupportedModelError

if TYPE_CHECKING:
    from ..hub.names import HubName
    from ..model.config import ModelConfig


def config_at(path: Path) -> ModelConfig:
    """The configuration of a checkpoint: of a folder that need have no weights, or a GGUF file."""
    from ..convert.sources import open_source
    from ..convert.sources.huggingface import folder_config
    from ..convert.sources.listing import CONFIG

    return folder_config(path / CONFIG) if path.is_dir() else open_source(path).config


def config_on_hub(name: HubName, offline: bool) -> ModelConfig:
    """The configuration of a model on the hub; nothing else is fetched.

    Raises ``UnsupportedModelError`` for a model that would not run, or has none outside its GGUF.
    """
    from ..convert.sources.huggingface import folder_config
    from ..convert.sources.listing import CONFIG
    from ..hub.repository import open_repository

    repository = open_repository(name, offline=offline)
    with about(name):
        if CONFIG not in repository.files:
            raise UnsupportedModelError(
                f"it has no {CONFIG}; what a GGUF or .dbb file takes says edgedb fits FILE"
            )
        return folder_config(repository.fetch(CONFIG))


@contextmanager
def about(name: HubName) -> Iterator[None]:
    """Errors inside say which repository they are about."""
    try:
        yield
    except EdgeDBError as error:
        if str(name) in str(error) or name.repository in str(error):
            raise
        raise type(error)(f"{name}: {error}") from None
