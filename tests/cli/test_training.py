"""The way from ``edgedb convert --train`` to the project's tools."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from edgedb.cli import training
from edgedb.cli.commands import main
from edgedb.errors import EdgeDBError


def convert(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["convert", "source", "out.dbb", *arguments])


def test_the_tools_get_what_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("text")
    ran = []

    def run(command: list[str], **how: Any) -> SimpleNamespace:
        ran.append((command, how["env"]["PYTHONPATH"]))
        return SimpleNamespace(returncode=len(ran) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    given = ["--train", "blocks", "--plan", "layers.0=2", "--calibration", str(text)]
    assert convert(*given).exit_code == 0
    line, path = ran[0]
    assert line[:3] == [sys.executable, "-m", "tools.export"]
    assert line[3:5] == ["source", "out.dbb"]
    assert sorted(line[5:]) == [
        f"--calibration={text}", "--plan=layers.0=2", "--train=blocks",
    ]  # fmt: skip
    assert (Path(path.split(":")[0]) / "tools" / "export.py").is_file()
    assert convert(*given).exit_code == 1


@pytest.mark.parametrize("missing", ["tools", "torch"])
def test_what_is_missing_is_said_in_one_line(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if missing == "tools":
        monkeypatch.setattr(training, "_CHECKOUT", tmp_path)
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgeDBError) as error:
        training.convert_with_tools([])
    line = str(error.value)
    assert "\n" not in line
    assert {"tools": "clone", "torch": "pip install"}[missing] in line
