#!/usr/bin/env bash
# Installs the wheel for this machine's Linux as a stranger would: into an empty environment, in an
# empty folder, with nothing else on the path, so that no compiler and no source tree is seen. There
# the library must run, and write the same text as this tree does by Python $1.
#
#   wheel_linux_test.sh PYTHON DIST MODEL [another Python ...]    default: PYTHON itself
set -euo pipefail
python=$1 dist=$2 model=$(realpath "$3")
shift 3
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # a link resolved leaves the venv
wheel=$(realpath "$dist"/*manylinux*_"$(uname -m)".whl)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

options=("$model" -p "Once upon a time" -n 24 --seed 7)
"$python" -m edgedb generate "${options[@]}" >"$folder/here.txt"
cd "$folder"
for other in "${@:-$python}"; do
    rm -rf venv
    "$other" -m venv venv
    venv/bin/python -m pip install -qq --disable-pip-version-check "$wheel"
    stranger() { env -i PATH="$folder/venv/bin" HOME="$folder" "$@"; }
    stranger edgedb info | grep '^  backend  native' >info.txt
    stranger edgedb generate "${options[@]}" >there.txt
    cmp here.txt there.txt
    echo "$(basename "$wheel"): native and same text by $(venv/bin/python -V)"
done
