"""What the wheels of six platforms promise, read in their headers; `make wheels` builds and checks
all of them, here the library of this machine stands for theirs."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgedb.ops.library import FILE
from native.compile import exported
from native.images import read_image
from native.targets import TARGETS
from native.wheels import WheelError, check_wheel

LINUX = TARGETS["manylinux_2_28_x86_64"]


def test_the_library_shows_the_header_and_nothing_else() -> None:
    if FILE.suffix != ".so":
        pytest.skip("reads the library of Linux")
    image = read_image(FILE.read_bytes())
    assert image.kind == "ELF" and image.shows == frozenset(exported())
    assert {"libc.so.6"} <= image.needs <= {"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1"}
    assert image.oldest >= (2, 17)


@pytest.mark.parametrize("tag", TARGETS)
def test_a_library_of_another_system_is_refused(tag: str, tmp_path: Path) -> None:
    target = TARGETS[tag]
    wheel = _wheel(tmp_path, tag, target.library_name, _other_image(target.system))
    with pytest.raises(WheelError, match=f"{wheel.name}: its library is "):
        check_wheel(wheel, target)


def test_a_wheel_of_another_name_or_content_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, "any", "libedgedb.so", b"")
    with pytest.raises(WheelError, match="does not end in py3-none-manylinux_2_28_x86_64"):
        check_wheel(wheel, LINUX)
    wheel = _wheel(tmp_path, LINUX.tag, "edgedb.dll", b"")
    with pytest.raises(WheelError, match=r"has the libraries \['edgedb/edgedb.dll'\]"):
        check_wheel(wheel, LINUX)


def test_a_library_for_a_newer_system_is_refused(tmp_path: Path) -> None:
    image = read_image(FILE.read_bytes()) if FILE.suffix == ".so" else None
    if image is None or image.machine != "x86_64":
        pytest.skip("has no library of Linux on x86-64 to put in")
    wheel = _wheel(tmp_path, "manylinux_2_2_x86_64", "libedgedb.so", FILE.read_bytes())
    with pytest.raises(WheelError, match=r"its library needs \(2, \d+\), not \(2, 2\)"):
        check_wheel(wheel, replace(LINUX, tag="manylinux_2_2_x86_64"))


def _wheel(folder: Path, tag: str, library: str, image: bytes) -> Path:
    wheel = folder / f"edgedb_llm-0.1.0-py3-none-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"edgedb/{library}", image)
        archive.writestr("edgedb/_declarations.py", "")
    return wheel


def _other_image(system: str) -> bytes:
    """An empty Mach-O file, or for a Mac's wheel an empty ELF file."""
    if system != "darwin":
        return struct.pack("<IIIIIIII", 0xFEEDFACF, 0x0100000C, 0, 6, 0, 0, 0, 0)
    head = b"\x7fELF" + bytes(14) + struct.pack("<H", 62)
    return head.ljust(64, b"\0")
