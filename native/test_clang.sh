#!/usr/bin/env bash
# test_clang.sh PYTHON: compile the C library, its tests and the Python extension with the clang of
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
CC=$clang LDSHARED="$clang -shared" EDGEDB_WERROR=1 \
    "$python" setup.py -q build_ext --build-lib "$build" --build-temp "$build/objects"
"$python" - "$build"/edgedb/_native*.so <<'END'
import importlib.machinery
import importlib.util
import sys

loader = importlib.machinery.ExtensionFileLoader("edgedb._native", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
loader.exec_module(module)
print("extension:", module.ffi.string(module.lib.edb_isa_name(0)).decode(), "is its best set")
END
