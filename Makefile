# The project's commands. `make help` lists them; README.md explains the two that a newcomer needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON_BIN := .venv/bin/python
FAST_TESTS := -m "not cluster and not frameworks and not older"
# One worker for the cluster's tests, which mostly wait, and two for the others (tests/lanes.py).
LANES := -n 3 --no-loadscope-reorder

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.venv/.installed: pyproject.toml scripts/venv
	@scripts/venv
	@touch $@

.PHONY: venv
venv: .venv/.installed ## Create the development environment

LOOPS := planner/perseus_planner/_ahead.made

$(LOOPS): $(addprefix planner/perseus_planner/,ahead.py loops.py descent.py realise.py ruin.py sweep.py switching.py) | .venv/.installed
	@$(PYTHON_BIN) -m perseus_planner.ahead >/dev/null 2>&1 || echo "The planner's loops are compiled on first use: a C compiler or Python's headers are missing."
	@touch $@

.PHONY: loops
loops: $(LOOPS) ## Compile the planner's loops (half a minute, once; without it they compile on first use)

.PHONY: native
native: ## Compile the simulated NVML library
	@command -v cc >/dev/null || { echo "A C compiler is missing: install one (on Debian: apt-get install gcc libc6-dev)." >&2; exit 2; }
	@$(MAKE) --no-print-directory -s -C simulator/native

.PHONY: demo
demo: venv ## A real Kubernetes, the operator, GPT-3 on 16 simulated GPUs, and the energy saved (PROFILE=given: bring a profile)
	@$(PYTHON_BIN) -m demo $(if $(filter given,$(PROFILE)),--given-profile)

.PHONY: example
example: venv native ## A GPT pipeline in real torch on four simulated GPUs, no cluster
	@$(PYTHON_BIN) examples/torch-pipelining/run.py

.PHONY: up
up: venv ## The cluster with the operator, simulated GPUs and Prometheus
	@$(PYTHON_BIN) -m testbed.installation

.PHONY: down
down: venv ## Stop the cluster and leave no trace
	@$(PYTHON_BIN) -m testbed down

.PHONY: test
test: venv loops ## Every test, on the real parts (root, Go >= 1.26)
	@$(PYTHON_BIN) -m testbed build
	@$(MAKE) --no-print-directory native
	@$(PYTHON_BIN) -m pytest $(LANES)

.PHONY: test-fast
test-fast: venv native loops ## The tests that need no cluster and train nothing, under 3 minutes
	@$(PYTHON_BIN) -m pytest $(FAST_TESTS)

.PHONY: test-frameworks
test-frameworks: venv native ## The adapters in real torch, DeepSpeed and Megatron-Core, on CPU
	@$(PYTHON_BIN) -m pytest -m frameworks

.PHONY: test-older
test-older: venv native ## The CRD, a release's life and the operator on the oldest Kubernetes that is supported (its control plane alone)
	@$(PYTHON_BIN) -m pytest -m older

.PHONY: lint
lint: venv ## ruff, mypy --strict, import layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy api planner trainer daemonset operator simulator testbed demo harness dashboards
	@.venv/bin/lint-imports

.PHONY: bench
bench: venv loops ## Benchmarks, beside the public solver; figures go to build/bench (LARGEST=1: huge pipelines too)
	@mkdir -p build/bench
	@$(PYTHON_BIN) -c 'import lowtime' 2>/dev/null || $(PYTHON_BIN) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@LARGEST=$(LARGEST) $(PYTHON_BIN) -m benchmarks

.PHONY: bench-profiling
bench-profiling: venv native ## Measured profiles against the simulated device's truth, in real time: a quarter of an hour (PARTS=chunked)
	@$(PYTHON_BIN) -m benchmarks.profiling $(PARTS)

.PHONY: bench-kills
bench-kills: venv native ## A thousand deaths at random moments: locks left, bystanders touched
	@$(PYTHON_BIN) -m benchmarks.kills $(if $(SEED),--seed $(SEED))

.PHONY: bench-agent
bench-agent: venv native ## From a boundary to its NVML call, beside zeusd (cargo; built once, in a cache)
	@$(PYTHON_BIN) -m benchmarks.agent

.PHONY: bench-stragglers
bench-stragglers: venv ## The straggler loop: false alarms, detection, cluster, accounting, rounds, scale (PARTS="rounds scale")
	@$(PYTHON_BIN) -m benchmarks.stragglers $(PARTS)

.PHONY: bench-writes
bench-writes: venv ## Kill the operator at every write, play every fault; build/bench/writes.json
	@mkdir -p build/bench
	@$(PYTHON_BIN) -m benchmarks writes

.PHONY: bench-operator
bench-operator: venv ## 1,000 jobs on 1,250 nodes of kwok's; build/bench/operator.json
	@mkdir -p build/bench
	@$(PYTHON_BIN) -m benchmarks operator

.PHONY: savings
savings: venv loops ## Write docs/savings.md, the table of savings (needs the project's data beside the checkout)
	@$(PYTHON_BIN) -m benchmarks.savings

FUZZ_SECONDS := 120

.PHONY: fuzz
fuzz: venv ## Fuzz the loaders of files with atheris for FUZZ_SECONDS each
	@$(PYTHON_BIN) -c 'import atheris' 2>/dev/null || $(PYTHON_BIN) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@for target in profile header orders frontier; do \
	  $(PYTHON_BIN) -m tests.planner.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 || exit 1; done

.PHONY: crds
crds: venv ## Copy the CRD into the chart, and write docs/reference.md from it
	@mkdir -p charts/perseus-operator/crds
	@cp crds/*.yaml charts/perseus-operator/crds/
	@$(PYTHON_BIN) scripts/api_reference

.PHONY: dashboards
dashboards: venv ## Write the Grafana dashboards' JSON into the chart
	@$(PYTHON_BIN) -m dashboards

.PHONY: pictures
pictures: venv ## Play the demonstration and draw what the dashboards show of it into docs/pictures
	@$(PYTHON_BIN) -m demo.pictures

.PHONY: docs
docs: venv ## Build the documentation into build/site, every link checked
	@.venv/bin/mkdocs build --strict --quiet
