# The project's commands. `make help` lists them; README.md explains the two that a newcomer needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON_BIN := .venv/bin/python
FAST_TESTS := -m "not cluster and not frameworks"

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.venv/.installed: pyproject.toml scripts/venv
	@scripts/venv
	@touch $@

.PHONY: venv
venv: .venv/.installed ## Create the development environment

.PHONY: native
native: ## Compile the simulated NVML library
	@command -v cc >/dev/null || { echo "A C compiler is missing: install one (on Debian: apt-get install gcc libc6-dev)." >&2; exit 2; }
	@$(MAKE) --no-print-directory -s -C simulator/native

.PHONY: demo
demo: venv ## A real Kubernetes, the operator, GPT-3 on 16 simulated GPUs, and the energy saved (PROFILE=given: none measured)
	@$(PYTHON_BIN) -m demo $(if $(filter given,$(PROFILE)),--given-profile)

.PHONY: up
up: venv ## The cluster with the operator, simulated GPUs and Prometheus
	@$(PYTHON_BIN) -m testbed.installation

.PHONY: down
down: venv ## Stop the cluster and leave no trace
	@$(PYTHON_BIN) -m testbed down

.PHONY: test
test: venv ## Every test, on the real parts (root, Go >= 1.26)
	@$(PYTHON_BIN) -m testbed build
	@$(MAKE) --no-print-directory native
	@$(PYTHON_BIN) -m pytest

.PHONY: test-fast
test-fast: venv native ## The tests that need no cluster and train nothing, under 3 minutes
	@$(PYTHON_BIN) -m pytest $(FAST_TESTS)

.PHONY: test-frameworks
test-frameworks: venv native ## The adapters in real torch, DeepSpeed and Megatron-Core, on CPU
	@$(PYTHON_BIN) -m pytest -m frameworks

.PHONY: lint
lint: venv ## ruff, mypy --strict, import layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy api planner trainer daemonset operator simulator testbed demo harness
	@.venv/bin/lint-imports

.PHONY: bench
bench: venv ## Benchmarks; figures go to build/bench
	@mkdir -p build/bench
	@$(PYTHON_BIN) -m benchmarks

.PHONY: bench-profiling
bench-profiling: venv native ## Measured profiles against the simulated device's truth, in real time: about ten minutes
	@$(PYTHON_BIN) -m benchmarks.profiling

.PHONY: savings
savings: venv ## Write docs/savings.md, the table of savings (needs the project's data beside the checkout)
	@$(PYTHON_BIN) -m benchmarks.savings

.PHONY: crds
crds: venv ## Copy the CRD into the chart, and write docs/reference.md from it
	@mkdir -p charts/perseus-operator/crds
	@cp crds/*.yaml charts/perseus-operator/crds/
	@$(PYTHON_BIN) scripts/api_reference

.PHONY: docs
docs: venv ## Build the documentation into build/site, every link checked
	@.venv/bin/mkdocs build --strict --quiet
