"""Compiles the C library, and writes the declarations of its header for cffi.

The library knows nothing of Python, so one serves every Python of a platform, and a compiler for
another platform is all that it takes to build it for that one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .targets import TARGETS, UNALIGNED_MOVES, Target

NATIVE = Path(__file__).resolve().parent
HEADER = NATIVE / "include" / "edgedb.h"
SOURCES = sorted((NATIVE / "src").glob("*.c"))
HEADERS = [HEADER, *sorted((NATIVE / "src").glob("*.h"))]

# -ffp-contract=off: the numerics say where a multiply-add is fused; the compiler may not add any.
# No -march: the library runs on the baseline CPU and picks its kernels at run time.
COMPILE_ARGS = [
    "-std=c11",
    "-O3",
    "-g1",  # line numbers for profilers; full debug information is 2 MB of intrinsics
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
]
STRICT_ARGS = ["-Wall", "-Wextra", "-Werror"]


class CompilerError(Exception):
    """What a compiler said, or why it did not run."""


def header_crc() -> int:
    """By this Python knows a library that was built with another header."""
    return zlib.crc32(HEADER.read_bytes())


def declarations() -> str:
    """The header as cffi reads it: no preprocessor lines and nothing that is for C++ only."""
    header = HEADER.read_text(encoding="utf-8")
    plain = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", header, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^#.*$", "", plain, flags=re.MULTILINE)


def exported() -> list[str]:
    """The functions of the header, which are all that the library shows."""
    plain = re.sub(r"/\*.*?\*/", "", declarations(), flags=re.DOTALL)
    return sorted(set(re.findall(r"\b(edb_\w+)\(", plain)))


def declare(path: Path) -> None:
    """The Python module ``edgedb._declarations``, whose ``ffi`` opens the library: parsed here, so
    that no start has to."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(declarations())
    ffi.cdef(f"#define EDB_HEADER_CRC {header_crc()}")
    ffi.set_source("edgedb._declarations", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_python_code(str(path))


def target() -> Target:
    """What to build for: ``EDGEDB_TARGET``, one of ``TARGETS``, or this machine."""
    name = os.environ.get("EDGEDB_TARGET")
    return TARGETS[name] if name else host()


def host() -> Target:
    """This machine, with the compiler of ``CC`` or the one that built Python."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    args = ("-fPIC",)
    if sys.platform == "win32":
        compiler = os.environ.get("CC") or "gcc"  # MSVC does not know our attributes
        args = UNALIGNED_MOVES if "gcc" in compiler else ()
    return Target("", tuple(shlex.split(compiler)), sys.platform, args)


def strict() -> bool:
    return os.environ.get("EDGEDB_WERROR") == "1"


def must_succeed() -> bool:
    """Whether a failure ends the installation: elsewhere it leaves a slower backend, but who asks
    for errors is to see them, unless there is nothing to compile with."""
    if os.environ.get("EDGEDB_TARGET"):
        return True
    return strict() and shutil.which(host().compiler[0]) is not None


def library(target: Target, made: Path, objects: Path) -> None:
    """Compile what changed since ``objects`` were made, and link ``made``.

    Raises ``CompilerError`` with what the compiler said.
    """
    objects.mkdir(parents=True, exist_ok=True)
    made.parent.mkdir(parents=True, exist_ok=True)
    flags = [
        *target.compile_args,
        *COMPILE_ARGS,
        *(STRICT_ARGS if strict() else []),
        f"-DEDB_HEADER_CRC={header_crc()}u",
        *shlex.split(os.environ.get("CFLAGS", "")),
    ]
    # A change of the command makes everything anew, as one of a header does.
    command = objects / "command.txt"
    text = shlex.join([*target.compiler, *flags])
    if not command.exists() or command.read_text(encoding="utf-8") != text:
        shutil.rmtree(objects)
        objects.mkdir()
    newest = max(header.stat().st_mtime_ns for header in HEADERS)

    def compile_one(source: Path) -> Path:
        compiled = objects / f"{source.stem}.o"
        if not compiled.exists() or compiled.stat().st_mtime_ns < max(
            newest, source.stat().st_mtime_ns
        ):
            _run([*target.compiler, *flags, "-c", str(source), "-o", str(compiled)])
        return compiled

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = [str(path) for path in threads.map(compile_one, SOURCES)]
    command.write_text(text, encoding="utf-8")
    if target.system == "win32":  # where nothing else limits what a library shows
        definition = objects / "exports.def"
        definition.write_text("EXPORTS\n" + "".join(f"  {n}\n" for n in exported()), "ascii")
        parts.append(str(definition))
    link_args = [*target.link_args, *shlex.split(os.environ.get("LDFLAGS", ""))]
    linker = target.linker or target.compiler
    _run([*linker, *link_args, *parts, "-o", str(made), *target.libraries])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=NATIVE.parent)
    except OSError as error:
        raise CompilerError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise CompilerError(f"{shlex.join(command)}\n{done.stderr}")
    sys.stderr.write(done.stderr)
