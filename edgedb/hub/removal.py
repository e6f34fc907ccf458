"""What a model on disk consists of, and taking it away."""

from __future__ import annotations

import os
from contextlib import suppress
from glob import escape
from pathlib import Path

from ..errors import EdgeDBError
from .modelfiles import configured_folders, find_model, pulled_models
from .names import HubName, hub_name, name_of_folder
from .origin import FILE, forget_origin
from .repository import UNFINISHED


def belongings(name: str) -> list[Path]:
    """The files that go with a model, or with all that was pulled of ``OWNER/NAME``: unfinished
    ones too, the models themselves first.

    Raises ``EdgeDBError`` for a name that is none, and for a file outside the folders of models.
    """
    hub = hub_name(name)
    if hub is not None:
        found = _pulled(hub)
        if not found:
            raise EdgeDBError(f"{hub} is not on this disk")
        return found
    model = find_model(name)
    places = [os.path.realpath(place) for place in configured_folders()]
    folder = Path(os.path.realpath(model.parent))
    if str(folder) not in places and str(folder.parent) not in places:
        raise EdgeDBError(f"{model} lies in no folder of models and is left alone")
    if not os.path.lexists(model):
        raise EdgeDBError(f"{model}: no such file")
    return [model, *_unfinished(model)]


def remove(files: list[Path]) -> None:
    """Delete ``files``, what ``origin.json`` says of them, and a folder of a repository that is
    empty then. Raises ``EdgeDBError``."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
            forget_origin(file)
        except OSError as error:
            raise EdgeDBError(f"{file}: {error.strerror}") from None
    for folder in {file.parent for file in files}:
        if name_of_folder(folder.name):
            with suppress(OSError):  # others have put something there
                folder.rmdir()


def _unfinished(model: Path) -> list[Path]:
    """What conversions to ``model`` have left."""
    return sorted(model.parent.glob(escape(model.name) + ".partial*"))


def _pulled(hub: HubName) -> list[Path]:
    models = pulled_models(hub, configured_folders())
    files = [*models, *(left for model in models for left in _unfinished(model))]
    if hub.revision is None:
        for folder in (place / hub.folder for place in configured_folders()):
            for pattern in ("*.dbb.partial*", f".*{UNFINISHED}", FILE):
                files += [file for file in sorted(folder.glob(pattern)) if file not in files]
    return files
