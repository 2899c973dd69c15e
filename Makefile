# Every target makes .venv in the checkout if it is not there.
PYTHON ?= python3
BIN := .venv/bin
# The embedded policy is so small that threads of one matrix product only wait for each other.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test check serve engines

demo: .venv/ready
	$(BIN)/refinery demo

test: .venv/ready engines check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: .venv/ready
	$(BIN)/refinery serve

# vLLM and SGLang for machines without a GPU, each in an environment of its own.
engines: .engines/vllm/ready .engines/sglang/ready .engines/verifiers-classic/ready

.engines/%/ready: docker/engines/%-cpu/requirements.txt
	$(PYTHON) -m venv .engines/$*
	.engines/$*/bin/pip install --quiet --no-deps --requirement $<
	find docker/engines/$*-cpu \( -name '*.py' -o -name '*.pth' \) -exec \
	  cp {} "$$(.engines/$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \;
	touch $@

# Only for the tests.
.engines/verifiers-classic/ready: tests/environments/classic.txt
	$(PYTHON) -m pip install --quiet --no-deps --target $(@D) --requirement $<
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[service,trainers,dev]'
	touch $@
