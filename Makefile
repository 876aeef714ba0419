# `make help` lists what there is. Everything works in .venv, which the first command sets up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DATASET ?= mnist
TESTS ?=
# processes that test: more than there are cores, since tests wait for services much of their time
TESTERS ?= 3

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- environments: one virtual environment; the second stamp adds what development needs

$(VENV)/.run: pyproject.toml setup.py constraints.txt $(wildcard services/fedlearn/core/*.c)
	@echo "Setting up $(VENV); this takes a minute or two, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedlearn needs Python 3.11 or newer: set PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --constraint constraints.txt --editable '.[learning,local,plots]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PIP) install --constraint constraints.txt --group dev --editable '.[learning,local,plots,postgresql]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## set up .venv for development

# --- use

.PHONY: demo
demo: $(VENV)/.run ## federated rounds on MNIST with five devices, on this machine
	@$(BIN)/fedlearn data fetch $(DATASET)
	@$(BIN)/fedlearn run --dataset $(DATASET) --devices 5 --rounds 5

# --- checks

.PHONY: test
test: $(VENV)/.dev ## set up and run the tests (TESTS=path for some of them)
	@$(BIN)/fedlearn data fetch mnist
	@$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder $(TESTS)

.PHONY: check
check: lint imports ## the gate: format, lint, types, import rules, tests
	@$(MAKE) --no-print-directory --jobs=2 types test # mypy has one core, which tests leave idle now and then

.PHONY: lint
lint: $(VENV)/.dev ## format and lint, changing nothing
	@$(BIN)/ruff format --check --quiet services tests benchmarks examples || (echo "run 'make format'" && exit 1)
	@$(BIN)/ruff check --quiet services tests benchmarks examples

.PHONY: types
types: $(VENV)/.dev ## check the types
	@$(BIN)/mypy
	@$(BIN)/mypy benchmarks/*.py

.PHONY: imports
imports: $(VENV)/.dev ## check who may import whom
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## format and mend what can be mended
	@$(BIN)/ruff check --fix --quiet services tests benchmarks examples || true
	@$(BIN)/ruff format services tests benchmarks examples

.PHONY: docs
docs: $(VENV)/.dev ## write what is generated: settings, metrics, dashboards, and the chart's README
	@$(BIN)/python tests/support/settings_page.py
	@$(BIN)/python tests/support/metrics_page.py
	@$(BIN)/python tests/support/write_dashboards.py
	@$(BIN)/python tests/support/chart_readme.py

KILLS ?= 50
SEED ?= 0
OUTAGE_SECONDS ?= 30
CHAOS_FLAGS ?=

.PHONY: chaos
chaos: $(VENV)/.dev ## kill roles and take storage and database away, and check every version (KILLS=200 SEED=0 CHAOS_FLAGS=...)
	@$(BIN)/fedlearn chaos --kills $(KILLS) --seed $(SEED) --outage-seconds $(OUTAGE_SECONDS) $(CHAOS_FLAGS)
	@if $(BIN)/python -c 'import sys; from fedlearn.local.postgres import find_programs; sys.exit(find_programs() is None)'; \
	then $(BIN)/fedlearn chaos --kills 0 --seed $(SEED) --outage-seconds $(OUTAGE_SECONDS) --postgresql $(CHAOS_FLAGS); \
	else echo "There is no PostgreSQL server here: its outages are left out."; fi

.PHONY: pictures
pictures: $(VENV)/.dev ## take the console's pictures in docs/images (needs Chromium)
	@$(BIN)/python tests/browser/pictures.py

# --- containers and clusters

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGES := fedlearn-server fedlearn-aggregator fedlearn-device
DOCKER_BUILD_FLAGS ?=
HELM_FLAGS ?=
NAMESPACE ?= fedlearn
MONITORING ?= true

.PHONY: images
images: ## build the three images (DOCKER_BUILD_FLAGS=--network=host where builds need it)
	@for role in server aggregator device; do \
	  docker build $(DOCKER_BUILD_FLAGS) --file Dockerfile.$$role --tag fedlearn-$$role:$(VERSION) . || exit 1; done

.PHONY: kind-up
kind-up: images ## the images and the chart on a local kind cluster, with Grafana (MONITORING=false: without)
	@kind get clusters | grep -qx fedlearn || kind create cluster --config k8s/kind.yaml
	@for image in $(IMAGES); do kind load docker-image --name fedlearn $$image:$(VERSION) || exit 1; done
	@$(MAKE) --no-print-directory install HELM_FLAGS="--set monitoring.demo.enabled=$(MONITORING) $(HELM_FLAGS)"

.PHONY: minikube-up
minikube-up: images ## the images and the chart on a local minikube
	@minikube status >/dev/null 2>&1 || minikube start --memory 6g
	@for image in $(IMAGES); do minikube image load $$image:$(VERSION) || exit 1; done
	@$(MAKE) --no-print-directory install HELM_FLAGS="--set monitoring.demo.enabled=$(MONITORING) $(HELM_FLAGS)"

.PHONY: install
install: ## the chart into the current cluster, in a namespace that enforces restricted pods
	@kubectl get namespace $(NAMESPACE) >/dev/null 2>&1 || kubectl create namespace $(NAMESPACE)
	@kubectl label namespace $(NAMESPACE) --overwrite pod-security.kubernetes.io/enforce=restricted >/dev/null
	@helm upgrade --install fedlearn charts/fedlearn --namespace $(NAMESPACE) --wait --timeout 10m $(HELM_FLAGS)
	@kubectl get pods --namespace $(NAMESPACE)

# --- figures

BENCH_FLAGS ?=

.PHONY: bench
bench: $(VENV)/.dev .venv-flower/.ready ## measure everything (an hour) for docs/benchmarks.md (BENCH_FLAGS=--short: without what takes long)
	@$(BIN)/fedlearn data fetch mnist
	-@$(BIN)/fedlearn data fetch fashion-mnist # what codecs cost is measured on it too: said now, not after half an hour
	@$(BIN)/python benchmarks/page.py $(BENCH_FLAGS)

.venv-flower/.ready: # what is measured beside ours
	@$(PYTHON) -m venv .venv-flower
	@.venv-flower/bin/pip install --quiet 'flwr[simulation]>=1.42,<1.43'
	@touch $@

.PHONY: clean
clean: ## delete .venv, caches and runs
	rm -rf $(VENV) .venv-flower runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build services/*.egg-info
