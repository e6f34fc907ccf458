"""Where model files lie: the one to use if none is named, and those near it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import EdgeDBError
from ..files import SOURCE_TREE as CHECKOUT
from ..files import user_folder

# The first, trained in three planes, a pair and a half, is part of the source tree; `make chat
# PAIRS=2` makes the second, of four bits and untrained.
DEFAULT_NAMES = ("smollm2-135m-instruct-mixed.dbb", "smollm2-135m-instruct.dbb")
# What to know before talking to a model, by its fingerprint: of the first one above, and of the one
# at two bits throughout that was it before. A file that takes its place says nothing until it has a
# line of its own.
_REMARKS = {
    "c3b9d2afee662b868952fd0b0afea473ff2c2dd59080e6ca087bf487c05221b0": (
        "a very small model at three bits and a half a weight: often wrong"
    ),
    "aa0c9337bd1dd713200fe9af85eec9af9e8e85e8b459b650f4c47cb117787f82": (
        "a very small model at two bits, often wrong; `make chat PAIRS=2` answers better"
    ),
}


def configured_folders(*more: Path) -> list[Path]:
    """Those of ``$EDGEDB_MODELS``, or ``models`` in this folder and in the user's own data, and
    ``more``."""
    if os.environ.get("EDGEDB_MODELS"):
        return [Path(folder) for folder in os.environ["EDGEDB_MODELS"].split(os.pathsep)]
    data = user_folder("XDG_DATA_HOME", ".local", "share")
    own = [data / "edgedb" / "models"] if data is not None else []
    return [Path("models"), *own, *more]


def folders() -> list[Path]:
    """The configured ones; if edgedb runs from a source tree, its ``models`` come last."""
    found = configured_folders()
    if (CHECKOUT / "pyproject.toml").exists() and Path.cwd() != CHECKOUT:
        found.append(CHECKOUT / "models")
    return found


def default_model() -> Path:
    """The model to use if none is named. Raises ``EdgeDBError`` that says how to get one."""
    for folder in folders():
        for name in DEFAULT_NAMES:
            if os.path.isfile(folder / name):
                return folder / name
    raise EdgeDBError(
        f"name a model file: there is no models/{DEFAULT_NAMES[0]} in this folder; the source tree "
        "has it, and `edgedb convert CHECKPOINT OUT.dbb` makes others"
    )


def remark(fingerprint: str) -> str | None:
    """What to know before talking to the model whose ``DbbFile.fingerprint`` this is, one line."""
    return _REMARKS.get(fingerprint)


def find_model(name: str, beside: Path | None = None) -> Path:
    """``name`` as a path, or as the name of a file in one of the ``folders`` or that of ``beside``.

    Raises ``EdgeDBError`` that says where it was looked for and what is there. What can be no name
    comes back as it is: opening it says what is wrong.
    """
    # Unlike those of Path, these functions answer for every name, one that is too long included.
    path = Path(os.path.expanduser(name))
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    places = _places(beside)
    for folder in places:
        for candidate in (folder / name, folder / f"{name}.dbb"):
            if os.path.isfile(candidate):
                return candidate
    if path.suffix not in ("", ".dbb"):
        return path
    there = [known.stem for known in known_models(beside)]
    raise EdgeDBError(
        f"{name}: no such file, and no model of this name in {', '.join(map(str, places))}; "
        + (f"there: {', '.join(there)}" if there else "no model is there")
    )


def _places(beside: Path | None) -> list[Path]:
    return [*folders(), *([beside.parent] if beside is not None else [])]


def known_models(beside: Path | None = None) -> list[Path]:
    """Model files in the ``folders`` and in the folder of ``beside``, each once, by name."""
    files = (path for place in _places(beside) for path in sorted(place.glob("*.dbb")))
    found = {os.path.realpath(path): path for path in files if os.path.isfile(path)}
    return sorted(found.values(), key=lambda path: path.name)
