# Every target makes .venv in the checkout if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# The embedded policy is so small that threads of one matrix product only wait for each other.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test check serve

demo: .venv/ready
	$(BIN)/refinery demo

test: .venv/ready check
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: .venv/ready
	$(BIN)/refinery serve

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[service,trainers,dev]'
	touch $@
