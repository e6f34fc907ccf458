"""What pip installs is what the tree has: a checkout installed for editing would hide a gap."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch

import pytest
from places import ROOT

from native.targets import TARGETS

if sys.version_info >= (3, 11):
    import tomllib


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML")
def test_native_runners_build_for_the_same_platforms() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tool = settings["tool"]["cibuildwheel"]
    made = set()
    for system, archs in {s: tool[s]["archs"] for s in ("linux", "macos", "windows")}.items():
        for arch in archs:
            if system == "linux":
                made.add(f"{tool[system][f'manylinux-{arch}-image']}_{arch}")
                continue
            identifier = {"macos": "macosx", "windows": "win"}[system] + f"_{arch.lower()}"
            (override,) = (
                one for one in tool["overrides"] if fnmatch(f"cp311-{identifier}", one["select"])
            )
            variables = override["environment"]
            if system == "macos":
                oldest = variables["MACOSX_DEPLOYMENT_TARGET"].replace(".", "_")
                made.add(f"macosx_{oldest}_{arch}")
            else:
                machine = {"AMD64": "x86_64", "ARM64": "aarch64"}[arch]
                assert variables["CC"] == f"clang --target={machine}-w64-mingw32"
                made.add(identifier)
    assert made == set(TARGETS)
