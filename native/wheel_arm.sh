#!/bin/sh
# Cross-builds the wheel for 64-bit Arm Linux into $2 with the Python $1, and checks what is in it.
#
# The extension keeps to Python's stable ABI, whose headers are the same for every 64-bit Linux, so
# this machine's serve. The tag promises glibc 2.34 or later, Debian 12 and Raspberry Pi OS 12.
set -eu
python=$1
dist=$2
glibc=2.34
command -v aarch64-linux-gnu-gcc >/dev/null || {
    echo "make wheel-arm needs, on Debian: apt-get install gcc-aarch64-linux-gnu" \
        "libc6-dev-arm64-cross" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/setup.cfg" <<END
[build]
build_base = $work/build
[bdist_wheel]
plat_name = manylinux_$(echo $glibc | tr . _)_aarch64
END

CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" EDGEDB_WERROR=1 \
    DIST_EXTRA_CONFIG="$work/setup.cfg" \
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work" . </dev/null

wheel=$(echo "$work"/*.whl)
"$python" -m zipfile -e "$wheel" "$work/content"
library=$work/content/edgedb/_native.abi3.so
aarch64-linux-gnu-readelf -h "$library" | grep -q 'Machine: *AArch64'
newest=$(aarch64-linux-gnu-readelf -V "$library" | grep -o 'GLIBC_[0-9.]*' |
    sed s/GLIBC_// | sort -uV | tail -1)
[ "$(printf '%s\n' "$newest" $glibc | sort -V | tail -1)" = $glibc ] || {
    echo "the library needs glibc $newest, the wheel promises $glibc" >&2
    exit 1
}
mkdir -p "$dist"
mv "$wheel" "$dist"
echo "$dist/$(basename "$wheel")"
