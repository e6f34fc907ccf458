"""The commands for models on this disk: ``models``, ``show``, ``path`` and ``rm``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import EdgeDBError
from ..files import size_text
from ..hub.modelfiles import find_model, known_models
from ..hub.origin import origin_of

_COMMIT_CHARS = 12
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _record(path: Path) -> dict[str, Any]:
    """What is known of a model file without opening it."""
    return {
        "name": path.stem,
        "path": str(path.absolute()),
        "size_bytes": path.stat().st_size,
        "origin": origin_of(path) or None,
    }


def _from(origin: dict[str, Any] | None) -> str:
    """Repository and commit."""
    if not origin:
        return ""
    return f"{origin.get('repository')}@{str(origin.get('revision'))[:_COMMIT_CHARS]}"


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models on this disk.

    Looks in models of this folder, in $XDG_DATA_HOME/edgedb/models and in the source tree, or in
    $EDGEDB_MODELS. Every command takes these names, and OWNER/NAME of what was pulled.
    """
    from . import ui

    found = [_record(path) for path in known_models()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        ui.table(
            (record["name"], f"{size_text(record['size_bytes']):>9}  {_from(record['origin'])}")
            for record in found
        )
    else:
        ui.warn("no model is on this disk: edgedb pull OWNER/NAME gets one")


@click.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show where a model comes from.

    What is inside it says "edgedb info NAME".
    """
    from . import ui

    record = _record(_existing(name))
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    origin = record["origin"] or {}
    rows = [("path", record["path"]), ("size", size_text(record["size_bytes"]))]
    if origin:
        rows += [("from", _from(origin)), ("asked for", str(origin.get("asked")))]
        rows += _flat("option", origin.get("options"))
        rows += _flat("version", origin.get("versions"))
        files = origin.get("files")
        for file, facts in files.items() if isinstance(files, dict) else ():
            rows.append((f"file {file}", _facts(facts)))
    ui.table(rows)


def _flat(word: str, values: Any) -> list[tuple[str, str]]:
    given = values.items() if isinstance(values, dict) else ()
    return [(f"{word} {key}", str(value)) for key, value in given if value not in (None, "")]


def _facts(facts: Any) -> str:
    if not isinstance(facts, dict) or not isinstance(facts.get("bytes"), int):
        return ""
    return f"{size_text(facts['bytes'])}, {facts.get('hash')}"


@click.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the path of a model's file."""
    click.echo(_existing(name).absolute())


def _existing(name: str) -> Path:
    found = find_model(name)
    if not found.is_file():
        raise EdgeDBError(f"{name}: no such model; edgedb models lists them")
    return found


@click.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, yes: bool) -> None:
    """Delete a model, or all that was pulled of OWNER/NAME.

    Says what goes, and asks. What a model was converted from stays in the hub's own cache, where
    "hf cache rm model/OWNER/NAME" deletes it.
    """
    import sys

    from ..hub.removal import belongings, remove
    from . import ui

    files = belongings(name)
    for file in files:
        ui.say(f"{file}  ({size_text(file.lstat().st_size)})")
    if not yes:
        if not sys.stdin.isatty():
            raise EdgeDBError("nothing was deleted: give --yes where nobody can be asked")
        if not click.confirm("Delete this?", err=True):
            return
    remove(files)
