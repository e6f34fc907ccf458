#!/bin/sh
# Runs the programs in directory $1, by the emulator that follows it if any, against golden.txt.
set -eu
dir=$1
shift
echo "native tests: $(basename "$dir") $*"
"$@" "$dir/arguments"
"$@" "$dir/pool" ${1:+child-alone}
for program in same_bits same_program golden_text; do
    "$@" "$dir/$program"
done >"$dir/golden.txt"
diff golden.txt "$dir/golden.txt"
