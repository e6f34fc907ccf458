"""The cffi binding ``edgedb._native``: the library's sources and the declarations of its header.

``setup.py`` names ``ffibuilder``; setuptools compiles it. Run as a script it writes nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sysconfig
import zlib
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
HEADER = NATIVE / "include" / "edgedb.h"

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
STRICT = os.environ.get("EDGEDB_WERROR") == "1"
STRICT_ARGS = ["-Wall", "-Wextra", "-Werror"]


def declarations(header: str) -> str:
    """The header as cffi reads it: no preprocessor lines and nothing that is for C++ only."""
    plain = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", header, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^#.*$", "", plain, flags=re.MULTILINE)


def _must_compile() -> bool:
    """Whether a failure ends the installation: elsewhere it leaves a slower backend, but who asks
    for errors is to see them, unless there is nothing to compile with."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return STRICT and shutil.which(shlex.split(compiler)[0]) is not None


def _relative(paths: list[Path]) -> list[str]:
    # setuptools wants sources relative to setup.py.
    return [os.path.relpath(path, NATIVE.parent) for path in paths]


ffibuilder = FFI()
ffibuilder.cdef(declarations(HEADER.read_text(encoding="utf-8")))
# By this a checkout's Python knows a library that was built before its header changed.
ffibuilder.cdef("#define EDB_HEADER_CRC ...")
ffibuilder.set_source(
    "edgedb._native",
    f'#include "edgedb.h"\n#define EDB_HEADER_CRC {zlib.crc32(HEADER.read_bytes())}u',
    sources=_relative(sorted((NATIVE / "src").glob("*.c"))),
    include_dirs=_relative([HEADER.parent]),
    depends=_relative([HEADER, *sorted((NATIVE / "src").glob("*.h"))]),
    extra_compile_args=COMPILE_ARGS + (STRICT_ARGS if STRICT else []),
    extra_link_args=["-pthread"],
    libraries=["m"],
    optional=not _must_compile(),
)
