# A thin front: each target works first, alone, and again. `make help` lists them.

# Extra arguments for pip, should setup have to install LibTorch.
export PIP_ARGS ?=
JOBS ?= $(shell nproc)

.NOTPARALLEL:
.PHONY: help setup build test quickstart quickstart-images figures bench compare format lint

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

setup:  ## Install what is missing: Debian packages, LibTorch
	@scripts/setup

build/build.ninja: CMakePresets.json
	cmake --preset release
	@touch $@

build: setup  ## Build everything: programs in build/bin, libraries in build/lib
	@$(MAKE) --no-print-directory build/build.ninja
	cmake --build --preset release -j $(JOBS)

test: build  ## Run every test
	ctest --preset release -j $(JOBS)

quickstart: setup  ## Train a small language model on tiny Shakespeare and let it write: runs/quickstart
	@$(MAKE) --no-print-directory build/build.ninja
	cmake --build --preset release -j $(JOBS) --target aft aft-train
	@scripts/quickstart

quickstart-images: setup  ## Train AFT-conv and a vision transformer on Fashion-MNIST, classify, draw: runs/fashion-*
	@$(MAKE) --no-print-directory build/build.ninja
	cmake --build --preset release -j $(JOBS) --target aft aft-train
	@scripts/quickstart images

figures: setup  ## Draw what those two learned about distance: runs/fashion-*/*.png
	@$(MAKE) --no-print-directory build/build.ninja
	cmake --build --preset release -j $(JOBS) --target aft aft-train
	@scripts/quickstart figures

compare: setup  ## Train AFT-local and attention at three learning rates each, in the same time: runs/compare
	@$(MAKE) --no-print-directory build/build.ninja
	cmake --build --preset release -j $(JOBS) --target aft-train
	@scripts/compare

bench: build  ## Time the operators against PyTorch and against copying (BENCH_ARGS=--json, ...)
	@bench/ops_cpu.py $(BENCH_ARGS)

format:  ## Format the C++ sources
	@scripts/setup --no-torch --lint
	@scripts/format

lint:  ## Check formatting, the Python files, and by clang-tidy the torch-free sources
	@scripts/setup --no-torch --lint
	@scripts/format --check
	@scripts/lint-python
	@scripts/tidy
