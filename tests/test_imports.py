"""What a start imports: what is not needed yet costs nobody time, and may be missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Packages beside Python's own, with ours, that these may import.
QUICK = {"edgedb", "click"}
# Needed by whoever asks for it: by a backend, a kind of tokenizer, a source, a screen, the server.
LATER = {"numba", "sentencepiece", "torch", "gguf", "huggingface_hub", "prompt_toolkit", "rich"}


def imported(code: str) -> set[str]:
    """Top-level packages, none of Python's own, that are there after ``code``."""
    ask = (
        "\nimport json, sys\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules}"
        " - {*sys.stdlib_module_names})))"
    )
    before = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", code + ask], capture_output=True, text=True, check=True
    )
    # Not what the environment imports into every Python, such as editable packages.
    return {*json.loads(done.stdout.splitlines()[-1])} - {*json.loads(before.stdout)}


def test_the_package() -> None:
    assert imported("import edgedb") == {"edgedb"}


def test_the_help() -> None:
    code = "from edgedb.cli.commands import main\nmain(['--help'], standalone_mode=False)"
    assert imported(code) <= QUICK


@pytest.mark.parametrize("module", ["email", "asyncio", "importlib.metadata"])
def test_no_start_imports_what_is_slow(module: str) -> None:
    code = f"import sys, edgedb, edgedb.files\nassert {module!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_needs_no_optional_package(tiny_model: Path) -> None:
    code = (
        f"import edgedb\nmodel = edgedb.load({str(tiny_model)!r})\n"
        "model.generate('ab', max_tokens=2)"
    )
    found = imported(code)
    assert "numpy" in found
    assert not found & (LATER - {"sentencepiece"})  # the tiny model's tokenizer
