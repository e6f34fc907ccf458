"""Which backend runs, and what is said where the C library is missing, broken or foreign."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import edgedb
from edgedb import ops
from edgedb.ops import library
from native import compile

PACKAGE = Path(edgedb.__file__).parent
LIBRARY = library.FILE


@pytest.fixture(params=["absent", "another machine", "cut short"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the package with such a library, and what is said of it."""
    if not LIBRARY.exists():
        pytest.skip("needs the built C library")
    ignored = shutil.ignore_patterns(LIBRARY.name, "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "edgedb", ignore=ignored)
    if request.param == "absent":
        return tmp_path, "the C library was not built"
    image = bytearray(LIBRARY.read_bytes())
    if request.param == "another machine":
        image[18:20] = (0x14, 0)  # e_machine: 32-bit PowerPC, which nothing here is
    else:
        del image[40:]
    (tmp_path / "edgedb" / LIBRARY.name).write_bytes(image)
    return tmp_path, "the C library cannot be loaded (damaged, or built for another machine?)"


def run(folder: Path, *arguments: str, backend: str = "") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEDB_")}
    environment |= {"PYTHONPATH": str(folder), "EDGEDB_BACKEND": backend}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )


def test_native_is_there_where_a_compiler_is() -> None:
    """The extension is optional: without this, a library that fails to compile is missed by all."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not any(map(shutil.which, (compiler, "cc", "gcc", "clang"))):
        pytest.skip("no C compiler here")
    assert ops.statuses()[0].available, ops.statuses()[0].reason


@pytest.mark.parametrize(
    ("compiler", "strict", "optional"),
    [("sh", "1", False), ("sh", "0", True), ("no-such-compiler", "1", True)],
)
def test_a_build_that_asks_for_errors_gets_them(
    monkeypatch: pytest.MonkeyPatch, compiler: str, strict: str, optional: bool
) -> None:
    monkeypatch.setenv("CC", f"{compiler} -pipe")
    monkeypatch.setenv("EDGEDB_WERROR", strict)
    assert compile.must_succeed() is not optional


def test_fallback_says_why_once(broken: tuple[Path, str]) -> None:
    folder, reason = broken
    result = run(folder, "-c", "from edgedb import ops\nfor _ in range(2): ops.create()")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("SlowBackendWarning: running on numba") == 1
    assert reason in result.stderr


def test_command_says_why_in_one_line(broken: tuple[Path, str]) -> None:
    folder, reason = broken
    result = run(folder, "-m", "edgedb", "info")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("edgedb: running on numba, many times slower than native: ")
    assert reason in result.stderr and result.stderr.count("\n") == 1
    assert f"(native: {reason}" in result.stdout
    assert "native  no   " in result.stdout


def test_forced_native_fails(broken: tuple[Path, str], tiny_model: Path) -> None:
    folder, reason = broken
    result = run(folder, "-m", "edgedb", "generate", str(tiny_model), "-p", "a", backend="native")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"edgedb: backend native cannot run: {reason}")
    assert result.stderr.count("\n") == 1


def test_other_choices_are_silent(broken: tuple[Path, str], tiny_model: Path) -> None:
    result = run(broken[0], "-m", "edgedb", "info", backend="numpy")
    assert (result.returncode, result.stderr) == (0, "")
