"""What pip installs is what the tree has: a checkout installed for editing would hide a gap."""

from __future__ import annotations

import re

from places import ROOT


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"\[tool\.setuptools\]\npackages = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    names = re.findall(r'"([\w.]+)"', listed[1])
    folders = {file.parent for file in (ROOT / "edgedb").rglob("__init__.py")}
    assert sorted(names) == sorted(".".join(f.relative_to(ROOT).parts) for f in folders)


def test_every_other_file_is_package_data() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"\[tool\.setuptools\.package-data\]\nedgedb = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    package = ROOT / "edgedb"
    patterns = re.findall(r'"([^"]+)"', listed[1])
    data = {path for pattern in patterns for path in package.glob(pattern)}
    page = set((package / "serve" / "page").iterdir())
    assert page | {package / "py.typed"} <= data
