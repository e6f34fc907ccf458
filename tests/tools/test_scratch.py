"""Scratch folders: emptied, removed, and one user's at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgedb.errors import EdgeDBError
from tools.scratch import scratch_folder


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.partial"
    (path / "folder").mkdir(parents=True)
    (path / "folder" / "file").touch()
    (path / "link").symlink_to(tmp_path)
    with scratch_folder(path) as folder:
        assert folder == path and not list(path.iterdir())
        (path / "mine").touch()
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.partial"
    with scratch_folder(path):
        (path / "mine").touch()
        with pytest.raises(EdgeDBError, match="another process is using"), scratch_folder(path):
            pass
        assert os.listdir(path) == ["mine"]


def test_a_folder_with_another_name_is_kept(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out.partial") as folder:
        (folder / "mine").touch()
        folder.rename(tmp_path / "out")
        with scratch_folder(folder):  # of the next run
            (folder / "next").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["mine"]


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with (
            pytest.raises(EdgeDBError, match=r"File exists|Not a directory|too long"),
            scratch_folder(path),
        ):
            pass
