"""The commit that a figure belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit_of(root: Path, *paths: str) -> str:
    """The last commit that changed ``paths``, with ``-dirty`` if more has changed since.

    Commits of reports or other pages leave it alone, so that a run in parts goes on. ``release``
    outside of a repository.
    """
    head = _git(root, "log", "-1", "--format=%h", "--abbrev=10", "--", *paths)
    if head is None:
        return "release"
    return head + ("-dirty" if _git(root, "status", "--porcelain", "--", *paths) else "")


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
