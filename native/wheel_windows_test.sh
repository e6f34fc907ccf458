#!/usr/bin/env bash
# Runs the wheel for Windows on x86-64 under wine: Python for Windows and the wheels of our
# dependencies, unpacked into $3, must write the same text as this machine's Python $1 does, by every
# instruction set of this processor.
#
#   wheel_windows_test.sh PYTHON DIST CACHE MODEL [generate's options]
#
# Needs Debian's wine64 and gcc-mingw-w64-x86-64; no root, nothing is installed. Python's library and
# extension modules come out of panda3d's wheel, which carries them for the games it packs; what is
# written in Python comes from $1, of the same version.
set -euo pipefail
python=$1 dist=$2 cache=$3 model=$(realpath "$4")
shift 4
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # a link resolved leaves the venv
mkdir -p "$cache"
cache=$(realpath "$cache")
wheel=$(realpath "$dist"/*win_amd64.whl)
sources=$(realpath "$(dirname "$0")/wine")
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
library=python${version/./}

wine=$(ls /usr/lib/wine/wine64 2>/dev/null || command -v wine) || {
    echo "edgedb: the test needs wine64 (Debian: wine64)" >&2
    exit 1
}

# Through pipes: wine gives Python for Windows no valid handle of a file.
windows_python() {
    WINEDEBUG=-all WINEPREFIX=$cache/wine PYTHONUTF8=1 \
        PYTHONPATH="Z:${cache//\//\\}\\wheel;Z:${cache//\//\\}\\site" \
        "$wine" "$cache/python/python.exe" "$@" </dev/null 2>&1 | tr -d '\r'
}

fetch() {
    "$python" -m pip "$@" -qq --python-version "$version" --only-binary=:all: --platform win_amd64
}

make_python() (
    rm -rf "$cache" && mkdir -p "$cache/python/DLLs" && cd "$cache"
    fetch download --no-deps panda3d==1.10.16
    "$python" -m zipfile -e panda3d-*.whl panda3d
    cp panda3d/deploy_libs/*.pyd panda3d/deploy_libs/lib*.dll panda3d/deploy_libs/sqlite3.dll python/DLLs
    cp panda3d/deploy_libs/"$library".dll python
    rm -r panda3d panda3d-*.whl
    cp -r "$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" python/Lib
    rm -rf python/Lib/{lib-dynload,{site,dist}-packages,test,config-*}

    x86_64-w64-mingw32-gcc -O1 -municode "$sources/python.c" python/"$library".dll -o python/python.exe
    x86_64-w64-mingw32-gcc -O1 -shared "$sources/bcryptprimitives.c" -o python/bcryptprimitives.dll
    # What modules for every Python 3 ask for: each function again, by the name of this version's.
    { echo EXPORTS && x86_64-w64-mingw32-objdump -p python/"$library".dll |
        sed -nE 's/^\s\[ *[0-9]+\].* (_?Py\w+)$/  \1 = '"$library"'.\1/p'; } >python3.def
    x86_64-w64-mingw32-gcc -shared -nostdlib -Wl,--entry=0 python3.def -o python/python3.dll

    # numpy 2 calls what wine 8 has not; numba is imported only by the backend of that name.
    fetch install --target site 'numpy<2' cffi safetensors sentencepiece tokenizers jinja2 click \
        prompt-toolkit rich threadpoolctl colorama
    windows_python -c pass >/dev/null # wine says what it makes in its folder
    touch .complete
)

[ -e "$cache/.complete" ] || make_python
rm -rf "$cache/wheel"
"$python" -m zipfile -e "$wheel" "$cache/wheel"

export EDGEDB_BACKEND=native # the others differ in bits, and would take over silently
set -- -m edgedb generate "$model" -p "Once upon a time" -n 24 --seed 7 --threads 2 "$@"
"$python" "$@" </dev/null >"$cache/here.txt" 2>&1
cd "$cache" # not the package in this folder, which is not for Windows
for isa in $(windows_python -c 'from edgedb.ops import library
print(*(name for name, _, runs in library.instruction_sets() if runs))'); do
    EDGEDB_ISA=$isa windows_python "$@" >"$isa.txt" || { cat "$isa.txt" >&2 && exit 1; }
    cmp here.txt "$isa.txt"
    echo "$(basename "$wheel"): same text by $isa"
done
