"""Builds the wheels of all platforms on Linux, and reads in their headers that they are what their
names promise: ``python -m native.wheels [--out dist] [TAG ...]``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .compile import exported
from .images import Image, read_image
from .targets import TARGETS, Target

LIMIT_BYTES = 2_000_000

# What every system of a platform has. Windows' C library comes under two names: the old one is part
# of every Windows on x86-64, the new one of Windows 10, the first for Arm.
SYSTEM_LIBRARIES = {
    "linux": re.compile(
        r"libc\.so\.6|libm\.so\.6|libpthread\.so\.0|ld-linux-(x86-64|aarch64)\.so\.\d"
    ),
    "darwin": re.compile(r"/usr/lib/libSystem\.B\.dylib"),
    "win32": re.compile(
        r"KERNEL32\.dll|msvcrt\.dll|api-ms-win-crt-[a-z]+-l1-1-0\.dll", re.IGNORECASE
    ),
}


class WheelError(Exception):
    """A wheel that cannot be built or is not what its name promises."""


def check_wheel(wheel: Path, target: Target) -> Image:
    """The library in a wheel. Raises ``WheelError`` if either is not what ``target`` asks for."""
    if not wheel.name.endswith(f"-py3-none-{target.tag}.whl"):
        raise WheelError(f"{wheel.name}: does not end in py3-none-{target.tag}")
    if (size := wheel.stat().st_size) > LIMIT_BYTES:
        raise WheelError(f"{wheel.name}: {size:,} bytes are more than {LIMIT_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if re.search(r"\.(so|dylib|dll|pyd)$", name)]
        if libraries != [f"edgedb/{target.library_name}"]:
            raise WheelError(f"{wheel.name}: has the libraries {libraries}")
        if "edgedb/_declarations.py" not in names:
            raise WheelError(f"{wheel.name}: lacks edgedb/_declarations.py")
        image = read_image(archive.read(libraries[0]))
    for problem in _problems(image, target):
        raise WheelError(f"{wheel.name}: its library {problem}")
    return image


def _problems(image: Image, target: Target) -> list[str]:
    machine = "arm64" if re.search("arm64|aarch64", target.tag) else "x86_64"
    kind = {"linux": "ELF", "darwin": "Mach-O", "win32": "PE"}[target.system]
    problems = []
    if (image.kind, image.machine) != (kind, machine):
        problems.append(f"is {image.kind} for {image.machine}")
    known = SYSTEM_LIBRARIES[target.system]
    if foreign := sorted(name for name in image.needs if not known.fullmatch(name)):
        problems.append(f"needs {', '.join(foreign)}")
    promised = tuple(int(n) for n in re.findall(r"(?<=_)\d+(?=_)", target.tag.replace("_86", "")))
    if image.oldest > promised:
        problems.append(f"needs {image.oldest}, not {promised}")
    if image.shows != frozenset(exported()):
        problems.append(
            f"shows other names too, or lacks some: {sorted(image.shows ^ {*exported()})}"
        )
    if (kind, machine) == ("Mach-O", "arm64") and not image.signed:
        problems.append("is not signed, which macOS on Arm asks for")
    return problems


def build_wheel(target: Target, out: Path) -> Path:
    """A wheel for ``target`` in ``out``, checked. Raises ``WheelError``."""
    if shutil.which(target.compiler[0]) is None:
        raise WheelError(f"{target.tag}: needs {target.compiler[0]} (Debian: {target.debian})")
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that an earlier build has left in the tree may come along.
        settings = Path(folder) / "setup.cfg"
        settings.write_text(f"[build]\nbuild_base = {folder}/build\n", encoding="utf-8")
        environment = os.environ | {
            "EDGEDB_TARGET": target.tag,
            "EDGEDB_WERROR": "1",
            "DIST_EXTRA_CONFIG": str(settings),
        }
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", folder, str(root)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise WheelError(f"{target.tag}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
        (made,) = Path(folder).glob("*.whl")
        check_wheel(made, target)
        out.mkdir(parents=True, exist_ok=True)
        for older in out.glob(f"edgedb_llm-*-{target.tag}.whl"):
            older.unlink()
        return Path(shutil.move(made, out / made.name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m native.wheels", description=__doc__)
    parser.add_argument("tags", nargs="*", choices=[*TARGETS, []], metavar="TAG")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    given = parser.parse_args()
    try:
        for tag in given.tags or TARGETS:
            wheel = build_wheel(TARGETS[tag], given.out)
            print(f"{wheel}  {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
    except WheelError as error:
        print(f"edgedb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
