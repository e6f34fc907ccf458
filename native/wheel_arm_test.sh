#!/bin/sh
# Runs the wheel for 64-bit Arm under qemu: Debian's Python for 64-bit Arm and the wheels of our
# dependencies, unpacked into $3, must write the same text as this machine's Python $1 does.
#
#   wheel_arm_test.sh PYTHON DIST CACHE MODEL [generate's options]
#
# Needs Debian 12 (or another with python3.11), its apt, and qemu-user; no root, nothing is installed.
set -eu
python=$1 dist=$2 cache=$3 model=$4
shift 4
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # a link resolved leaves the venv
mkdir -p "$cache"
cache=$(realpath "$cache")
wheel=$(realpath "$dist"/*aarch64.whl)

if [ ! -e "$cache/.complete" ]; then
    rm -rf "$cache" && mkdir -p "$cache/lists/partial" "$cache/archives/partial" && cd "$cache"
    : >status
    arm_apt() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
            -o Dir::State::Lists="$cache/lists" -o Dir::State::status="$cache/status" \
            -o Dir::Cache="$cache" "$@" 2>/dev/null
    }
    arm_apt update
    arm_apt download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 zlib1g \
        libexpat1 libssl3 libgcc-s1 libstdc++6 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1
    for package in *.deb; do dpkg -x "$package" root; done
    # All but numba, which only the backend of that name imports.
    "$python" -m pip install -qq --target site --python-version 3.11 --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
        numpy cffi safetensors sentencepiece tokenizers jinja2 click prompt-toolkit rich
    touch .complete
    cd - >/dev/null
fi
rm -rf "$cache/edgedb"
"$python" -m zipfile -e "$wheel" "$cache/edgedb"

set -- -m edgedb generate "$model" -p "Once upon a time" -n 24 --seed 7 --threads 2 "$@"
export EDGEDB_BACKEND=native # the others differ in bits, and would take over silently
"$python" "$@" >"$cache/here.txt"
for cpu in cortex-a72 max; do # -P: not the package in this folder, which is not for Arm
    PYTHONPATH="$cache/edgedb:$cache/site" qemu-aarch64 -L "$cache/root" -cpu $cpu \
        "$cache/root/usr/bin/python3.11" -P "$@" >"$cache/$cpu.txt"
    cmp "$cache/here.txt" "$cache/$cpu.txt"
    echo "$(basename "$wheel"): same text on $cpu"
done
