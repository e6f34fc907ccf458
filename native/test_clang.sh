#!/usr/bin/env bash
# test_clang.sh PYTHON: compile the C library, its tests and the library for Python with the clang of
# PYTHON's package ziglang, warnings as errors, and run them. For 64-bit Arm too, run if qemu is there.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
build=build/clang
export ZIG_GLOBAL_CACHE_DIR=$PWD/.cache/zig
clang="$python -m ziglang cc"
$clang --version | head -n 1

make --no-print-directory -C native/tests test-clang CLANG="$clang"

# -mcpu=baseline: zig's clang otherwise compiles for this very CPU.
clang+=" -target $(uname -m)-linux-gnu -mcpu=baseline -fno-sanitize=undefined"
rm -rf "$build"
CC=$clang EDGEDB_WERROR=1 \
    "$python" setup.py -q build_ext --build-lib "$build" --build-temp "$build/objects"
"$python" - "$build"/edgedb/libedgedb.so <<'END'
import sys
from pathlib import Path

from edgedb.ops import library

lib, problem = library.open_library(Path(sys.argv[1]), library.HEADER)
assert lib is not None, problem
print("library:", library.text_of(lib.edb_isa_name(0)), "is its best set")
END
