"""Where model files lie: the one to use if none is named, and those near it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import EdgeDBError
from ..files import SOURCE_TREE as CHECKOUT
from ..files import user_folder
from ..hints import suggestion
from .names import HubName, hub_name, name_of_folder
from .origin import origin_of

# The first, trained in three planes, a pair and a half, is part of the source tree; `make chat
# PAIRS=2` makes the second, of four bits and untrained.
DEFAULT_NAMES = ("smollm2-135m-instruct-mixed.dbb", "smollm2-135m-instruct.dbb")
_NAMED = 8  # models that an error names, of any number
# What to know before talking to a model, by its fingerprint: of the first one above, and of the one
# at two bits throughout that was it before. A file that takes its place says nothing until it has a
# line of its own.
_REMARKS = {
    "b6ae48e4de397520b8c4473156a7fcb1eded2ba7bc65f224fc6b3e5e658f4022": (
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
    own = _own_folder()
    return [Path("models"), *([own] if own else []), *more]


def _own_folder() -> Path | None:
    data = user_folder("XDG_DATA_HOME", ".local", "share")
    return data / "edgedb" / "models" if data is not None else None


def pull_folder() -> Path:
    """Where pulled models are put: the first of ``$EDGEDB_MODELS``, or the user's own data.

    Raises ``EdgeDBError`` for a user without a home.
    """
    if os.environ.get("EDGEDB_MODELS"):
        return configured_folders()[0]
    own = _own_folder()
    if own is None:
        raise EdgeDBError("there is no home to keep models in: set EDGEDB_MODELS to a folder")
    return own


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
    there = ", ".join(path.stem for path in known_models()[:_NAMED])
    raise EdgeDBError(
        f"name a model; on this disk: {there}"
        if there
        else "no model is on this disk: edgedb pull OWNER/NAME gets one, edgedb fits lists some, "
        "and a clone of the project has a small one"
    )


def remark(fingerprint: str) -> str | None:
    """What to know before talking to the model whose ``DbbFile.fingerprint`` this is, one line."""
    return _REMARKS.get(fingerprint)


def find_model(name: str, beside: Path | None = None) -> Path:
    """``name`` as a path, as the name of a file in one of the ``folders`` or that of ``beside``, or
    as ``OWNER/NAME`` of a model that was pulled: of several files the one that was made last.

    Raises ``EdgeDBError`` that says where it was looked for and what is there. What can be no name
    comes back as it is: opening it says what is wrong. Never asks the network.
    """
    # Unlike those of Path, these functions answer for every name, one that is too long included.
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):
        return path
    if len(path.parts) != 1:
        return _last_pulled(name) or path
    places = _places(beside)
    for folder in places:
        for candidate in (folder / name, folder / f"{name}.dbb"):
            if os.path.isfile(candidate):
                return candidate
    for known in _pulled(places):
        if name in (known.name, known.stem):
            return known
    if path.suffix not in ("", ".dbb") or not name.isprintable():
        return path
    there = [known.stem for known in known_models(beside)]
    raise EdgeDBError(
        f"{name}: no such file, and no model of this name in {', '.join(map(str, places))}; "
        + (f"there: {', '.join(there)}" if there else "no model is there")
        + suggestion(name, sorted(there, key=lambda known: f"{known}.dbb" not in DEFAULT_NAMES))
    )


def _last_pulled(name: str) -> Path | None:
    hub = hub_name(name)
    if hub is None:
        return None
    found = pulled_models(hub)
    if not found:
        raise EdgeDBError(
            f"{hub} is not on this disk; if it is a model on the hub: edgedb pull {hub}"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def absent(name: str) -> HubName | None:
    """The model on the hub that ``name`` must mean, because nothing on this disk is called so."""
    hub = hub_name(name)
    here = hub is None or os.path.exists(os.path.expanduser(name)) or pulled_models(hub)
    return None if here else hub


def pulled_models(name: HubName, places: list[Path] | None = None) -> list[Path]:
    """Model files of a repository, and of its revision if ``name`` has one, by their names: in
    ``places``, or in the ``folders``."""
    places = folders() if places is None else places
    files = (path for place in places for path in sorted((place / name.folder).glob("*.dbb")))
    found = [path for path in files if os.path.isfile(path)]
    return found if name.revision is None else [path for path in found if _is_of(path, name)]


def _is_of(path: Path, name: HubName) -> bool:
    origin = origin_of(path)
    asked, commit = name.revision or "", str(origin.get("revision"))
    return asked == origin.get("asked") or (len(asked) >= 7 and commit.startswith(asked))


def _places(beside: Path | None) -> list[Path]:
    return [*folders(), *([beside.parent] if beside is not None else [])]


def _pulled(places: list[Path]) -> list[Path]:
    """Model files in folders of repositories, each folder's by their names."""
    within = (path for place in places for path in sorted(place.glob("*--*/*.dbb")))
    return [path for path in within if name_of_folder(path.parent.name) and os.path.isfile(path)]


def models_in(places: list[Path]) -> list[Path]:
    """Model files in ``places`` and in the folders of repositories there."""
    plain = (path for place in places for path in sorted(place.glob("*.dbb")))
    return [*filter(os.path.isfile, plain), *_pulled(places)]


def known_models(beside: Path | None = None) -> list[Path]:
    """Model files in the ``folders`` and in the folder of ``beside``, each once, by name."""
    found: dict[str, Path] = {}
    for path in models_in(_places(beside)):
        found[os.path.realpath(path)] = path
    return sorted(found.values(), key=lambda path: path.name)
