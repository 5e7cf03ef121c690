# Two commands matter: `make repro` and `make test`. `make help` lists the rest.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3
PROFILE ?=
# cpu installs torch without CUDA (about 2 GB instead of 7 GB): make repro TORCH_BACKEND=cpu
TORCH_BACKEND ?=
PORT ?= 5000

export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro test test-slow lint format ui bench constraints

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv and install everything (the other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "chestflow needs Python 3.11 or later, this is " + sys.version.split()[0] + ": set PYTHON=python3.12, say")'
	@echo "Installing into $(VENV): $(if $(filter cpu,$(TORCH_BACKEND)),about 2 GB (torch without CUDA),about 7 GB (torch with CUDA; about 2 GB with TORCH_BACKEND=cpu)); free here: $$(df -Ph . | awk 'NR==2{print $$4}')"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) --constraints constraints.txt --editable '.[pipeline,dev]'
	@touch $@

repro: $(READY) ## Run the whole DAG; PROFILE=name writes that profile's params.yaml first
	@chestflow config $(PROFILE)
	@chestflow data ensure
	@chestflow tracking init
	@dvc repro

lint: $(READY) ## Check style and types
	@ruff check src stages tests benchmarks
	@ruff format --check --quiet src stages tests benchmarks || (echo "run make format"; exit 1)
	@mypy

format: $(READY) ## Bring the code into the agreed form
	@ruff check --fix --quiet src stages tests benchmarks
	@ruff format --quiet src stages tests benchmarks

test: lint ## Lint, then run the tests
	@python -m pytest -n logical --maxprocesses 4

test-slow: $(READY) ## Run the tests that are too long for every day
	@python -m pytest -m slow

ui: $(READY) ## Open MLflow on loopback (PORT=5000)
	@chestflow tracking init
	@chestflow ui --port $(PORT)

bench: $(READY) ## Measure speed and memory, each beside its plain peer
	@for script in benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

constraints: $(READY) ## Resolve the pinned versions anew
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --quiet --upgrade -o constraints.txt
