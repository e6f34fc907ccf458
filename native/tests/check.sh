#!/bin/sh
# Runs the programs in directory $1, by the emulator that follows it if any, against golden.txt.
set -eu
dir=$1
shift
exe= && [ -e "$dir/arguments" ] || exe=.exe # on Windows
echo "native tests: $(basename "$dir") $*"
"$@" "$dir/arguments$exe"
"$@" "$dir/fma$exe"
"$@" "$dir/pool$exe" ${1:+child-alone}
for program in same_bits same_program golden_text; do
    "$@" "$dir/$program$exe"
done >"$dir/golden.txt"
diff --strip-trailing-cr golden.txt "$dir/golden.txt"
