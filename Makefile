# make chat    set up once, then talk to SmolLM2-135M, trained at three bits and a half a weight (PAIRS=2:
#              four bits, untrained; it is fetched and converted first)
# make test    set up once, then the whole test suite: about a quarter of an hour on two cores,
#              half of it with WORKERS=2
# make bench   prompt and decode speed of a model (MODEL=file) or of a shape (SHAPE=llama-1.1b)
# make bench-peers
#              against llama.cpp (built here, some minutes): bench/results/peers-*; PEERS="--help"
# make bench-quality
#              both quantizers on one teacher: bench/results/quality-*; QUALITY="--parts ours", "--help"
# make lint    ruff and mypy
# make fuzz SECONDS=600
#              damaged and hostile files for every reader (docs/security.md); FUZZ="--help"
# make soak SECONDS=1800
#              edgedb serve under mixed load (docs/serve.md)
# make test-native, test-clang, test-arm, test-sanitize, test-emulated
#              the C library alone: here, by a current clang, as 64-bit Arm code under qemu, under
#              sanitizers, with AVX-512 and AVX-VNNI in Bochs
# make test-windows
#              the same as code for Windows, by mingw-w64's gcc, under wine
# make wheels  cross-build the wheels of six platforms (docs/platforms.md); WHEELS="win_amd64 ...": some
# make test-wheel-linux, test-wheel-arm, test-wheel-windows
#              install and run a wheel: in an empty environment (PYTHONS="python3.10 ..."), under qemu, in
#              Python for Windows under wine

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PAIRS ?=
SMOLLM2 := models/smollm2-135m-instruct
MODEL ?= $(SMOLLM2)$(if $(PAIRS),$(patsubst %,-%,$(filter-out 2,$(PAIRS))),-mixed).dbb
GGUF := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
NATIVE := $(wildcard native/src/* native/include/*) native/build.py setup.py
BENCH ?=
SECONDS ?= 600
FUZZ ?=
# Processes that share the tests, a gigabyte each; none: one after the other, as tests that wait for a
# terminal or a server like it best.
WORKERS ?=
TORCH ?= torch==2.13.0
ZIGLANG ?= ziglang==0.17.1
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WHEELS ?=
PYTHONS ?=
PEERS ?=
QUALITY ?=
PEERS_DIR := .cache/peers
LLAMA_CPP ?= llama-cpp-python==0.3.36

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: chat test test-native test-clang test-arm test-sanitize test-emulated test-windows wheels test-wheel-linux test-wheel-arm \
	test-wheel-windows bench bench-kernels bench-peers bench-quality lint fuzz soak clean
.DELETE_ON_ERROR:

chat: $(BIN)/.installed $(MODEL)
	@$(BIN)/edgedb chat $(MODEL)

test: $(BIN)/.installed-test $(BIN)/.installed-torch
	@$(BIN)/python -m tools.fetch_smollm2 $(GGUF) </dev/null || \
		echo "edgedb: going on without the model; the tests that need it are skipped"
	@$(BIN)/python tests/real_tokenizers.py </dev/null
	@echo "edgedb: running the tests (about a quarter of an hour on two cores)"
	$(BIN)/python -m pytest -q $(if $(WORKERS),--numprocesses $(WORKERS) --dist worksteal)

test-native:
	@$(MAKE) --no-print-directory -C native/tests test

test-clang: $(BIN)/.installed-clang
	@native/test_clang.sh $(BIN)/python

test-arm test-sanitize test-windows test-emulated:
	@$(MAKE) --no-print-directory -C native/tests $@

wheels: $(BIN)/.installed-clang
	@$(BIN)/python -m pip install --quiet --progress-bar off 'setuptools>=77' </dev/null
	@ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/.cache/zig $(BIN)/python -m native.wheels --out dist $(WHEELS)

test-wheel-linux:
	@$(MAKE) --no-print-directory wheels WHEELS=manylinux_2_28_$(shell uname -m)
	@native/wheel_linux_test.sh $(BIN)/python dist $(SMOLLM2)-db2.dbb $(PYTHONS)

test-wheel-arm:
	@$(MAKE) --no-print-directory wheels WHEELS=manylinux_2_28_aarch64
	@native/wheel_arm_test.sh $(BIN)/python dist .cache/arm64 $(SMOLLM2)-db2.dbb

test-wheel-windows:
	@$(MAKE) --no-print-directory wheels WHEELS=win_amd64
	@native/wheel_windows_test.sh $(BIN)/python dist .cache/windows $(SMOLLM2)-db2.dbb

bench: $(BIN)/.installed $(if $(SHAPE),,$(MODEL))
	@$(BIN)/edgedb bench $(if $(SHAPE),--shape $(SHAPE),$(MODEL)) $(BENCH)

bench-kernels: $(BIN)/.installed-test
	$(BIN)/python -m pytest bench/bench_kernels.py --benchmark-only --benchmark-group-by=func

bench-peers: $(BIN)/.installed-bench $(PEERS_DIR)/.built $(SMOLLM2).dbb
	@$(BIN)/python -m tools.fetch_smollm2 $(GGUF) </dev/null
	@$(BIN)/python -m bench.peers $(PEERS)

bench-quality: $(BIN)/.installed-bench $(PEERS_DIR)/.built
	@$(BIN)/python -m tools.fetch_smollm2 $(GGUF) </dev/null
	@$(BIN)/python -m bench.quality $(QUALITY)

lint: $(BIN)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(BIN)/.installed-test
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(FUZZ)

soak: $(BIN)/.installed-test
	@$(BIN)/python tests/soak.py --seconds $(SECONDS)

# The set-up steps read nothing from standard input: it belongs to the chat.
$(BIN)/.created:
	@echo "edgedb: making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) </dev/null
	@touch $@

$(BIN)/.installed: $(BIN)/.created pyproject.toml $(NATIVE)
	@echo "edgedb: installing the package and building its C library (about a minute)"
	@$(BIN)/python -m pip install -qq --progress-bar off -e '.[convert]' </dev/null
	@touch $@

$(BIN)/.installed-test: $(BIN)/.created pyproject.toml $(NATIVE)
	@echo "edgedb: installing the package with its test and lint tools (about a minute)"
	@EDGEDB_WERROR=1 $(BIN)/python -m pip install -qq --progress-bar off -e '.[convert,test,lint]' </dev/null
	@touch $@ $(BIN)/.installed

# PyTorch for the training tests: its CPU build alone, from where pip is told to look or from
# PyTorch's own index, for the one on PyPI brings gigabytes of CUDA. Without it they are skipped.
$(BIN)/.installed-torch: $(BIN)/.installed-test
	@echo "edgedb: installing PyTorch's CPU build for the training tests (about a minute)"
	@pip="$(BIN)/python -m pip install -qq --progress-bar off"; { \
		$$pip --no-deps --no-index $(TORCH)+cpu || \
		$$pip --no-deps --retries 1 --timeout 20 --index-url $(TORCH_INDEX) $(TORCH); \
	} 2>/dev/null </dev/null && $$pip $(TORCH) 'matplotlib>=3.8' </dev/null || \
		echo "edgedb: no CPU build of $(TORCH) to be had; the training tests are skipped"
	@touch $@

# A current clang that needs no system package: the one that zig carries.
$(BIN)/.installed-clang: $(BIN)/.installed-test
	@echo "edgedb: installing clang ($(ZIGLANG)); about 100 MB to fetch"
	@$(BIN)/python -m pip install -qq --progress-bar off '$(ZIGLANG)' </dev/null
	@touch $@

$(BIN)/.installed-bench: $(BIN)/.installed pyproject.toml
	@$(BIN)/python -m pip install -qq --progress-bar off -e '.[convert,bench]' </dev/null
	@touch $@ $(BIN)/.installed

$(PEERS_DIR)/.built: | $(BIN)/.created
	@echo "edgedb: building llama.cpp ($(LLAMA_CPP)) in $(PEERS_DIR); 5 to 10 minutes on two cores"
	@bench/peers/build_llama_cpp.sh $(PYTHON) $(PEERS_DIR) "$(LLAMA_CPP)" </dev/null
	@touch $@

$(GGUF): | $(BIN)/.installed
	@$(BIN)/python -m tools.fetch_smollm2 $@ </dev/null

$(SMOLLM2).dbb $(SMOLLM2)-1.dbb $(SMOLLM2)-3.dbb $(SMOLLM2)-4.dbb: | $(BIN)/.installed $(GGUF)
	@$(BIN)/edgedb convert $(GGUF) $@ --pairs $(or $(filter 1 3 4,$(@:$(SMOLLM2)-%.dbb=%)),2) </dev/null

clean:
	rm -rf $(VENV) build *.egg-info .cache edgedb/*.so native/*.o
