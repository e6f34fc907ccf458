#!/usr/bin/env bash
# build_llama_cpp.sh PYTHON FOLDER PACKAGE: llama.cpp as the source that its Python binding carries, built for
# this very CPU. FOLDER/venv gets the binding, FOLDER/build/bin llama.cpp's own programs, which no package has.
set -euo pipefail
python=$1 folder=$(realpath -m "$2") package=$3
export CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF"
# gcc 12 takes what a tile configuration (AMX) is filled with for dead, and llama.cpp dies of it.
export CXXFLAGS="-fno-tree-dse -fno-dse"
export PATH="$folder/venv/bin:$PATH"

"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --quiet)
"${pip[@]}" install --progress-bar off 'scikit-build-core[pyproject]>=0.9.2' 'cmake>=3.21' ninja 'gguf>=0.16.0'
rm -rf "$folder/source" "$folder/build"
"${pip[@]}" download --progress-bar off --no-deps --no-build-isolation --no-binary llama-cpp-python \
	-d "$folder/source" "$package"
tar -xzf "$folder"/source/*.tar.gz -C "$folder/source" --strip-components 1
"${pip[@]}" install --no-build-isolation -C build-dir="$folder/build" "$folder/source"
# The binding leaves the programs out; the library that they need is built already. No page for the server: it
# would be fetched.
cmake -S "$folder/source" -B "$folder/build" -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
	-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$folder/programs.log"
cmake --build "$folder/build" --target llama-quantize llama-imatrix llama-perplexity llama-server >>"$folder/programs.log"
