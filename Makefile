# Two commands for a newcomer: `make demo` and `make test`. Everything else is below `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help docs setup stubs demo test test-compiled fast unit soak lint breaking bench profile fmt tools lock clean

help:
	@echo "make demo [ONCE=1]   set up, then run the demo (ONCE=1: stop after its checks)"
	@echo "make test [JOBS=3]   set up, then run all tests; names at the end what could not run here"
	@echo "make lint            ruff, mypy strict, import-linter, buf lint"
	@echo "make soak [ROUNDS=100]  fault rounds, a line a minute, a ledger at the end; 2000: about two hours"
	@echo "make bench [SCENARIO=…] [ROUNDS=1]  measure; writes build/bench.json"
	@echo "make profile [SCENARIO=trigger+2]   flame graphs of sidecar and component, ledger of a message"
	@echo "make fast            compile the hot modules to C (a minute; optional); used while they match the sources"
	@echo "make test-compiled   unit, contract and simulation tests against what make fast made"
	@echo "make tools           build the real tools the tests can use (grpcurl, jaeger; needs Go and 4 minutes)"
	@echo "make fmt | docs | lock | clean"

# The virtual environment is complete when the stamp is newer than the lock file.
$(VENV)/.stamp: requirements.lock pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "make: Headrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "make: $(PYTHON) has no venv module. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) from requirements.lock (about half a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: stubs

# Bytecode is compiled here, because some environments forbid Python to write it while running.
stubs: $(VENV)/.stamp
	@$(BIN)/python tools/generate_stubs.py
	@$(BIN)/python -m compileall -q headrace services

demo: stubs
	@$(BIN)/headrace demo $(if $(ONCE),--once)

# Three at once: most tests wait for processes more than they work. Whoever debugs one says JOBS=0.
JOBS ?= 3
test: stubs
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

unit: stubs
	@$(BIN)/python -m pytest tests/unit

lint: stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@mkdir -p build && $(BIN)/python tools/generate_stubs.py --descriptor build/protos.binpb
	@$(BIN)/buf lint build/protos.binpb --config protos/buf.yaml
	@$(MAKE) -s breaking

# The API may grow, not change: compares the protos with those of the last commit that is over a day old.
AGAINST ?= $(shell git rev-list -1 --before='1 day ago' HEAD 2>/dev/null)
breaking: stubs
	@if [ -z "$(AGAINST)" ]; then echo "buf breaking: no commit is a day old yet; nothing to compare with"; else \
	  rm -rf build/against && mkdir -p build/against && git archive $(AGAINST) protos | tar -x -C build/against \
	  && $(BIN)/python tools/generate_stubs.py --protos build/against/protos --descriptor build/against.binpb \
	  && $(BIN)/python tools/generate_stubs.py --descriptor build/protos.binpb \
	  && $(BIN)/buf breaking build/protos.binpb --against build/against.binpb --config protos/buf.yaml; fi

fmt: stubs
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format .

bench: stubs
	@$(BIN)/python -m benchmarks $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_ARGS)

profile: stubs
	@$(BIN)/python -m benchmarks.profile $(if $(SCENARIO),--scenario $(SCENARIO)) $(PROFILE_ARGS)
	@$(BIN)/python -m benchmarks.ledger | tee build/profile/ledger.json

# Optional: nothing needs it, and an edited source is never hidden by it (headrace/compiled.py).
fast: stubs
	@$(BIN)/python tools/compile_modules.py

test-compiled: fast
	@HEADRACE_COMPILED=required $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  tests/unit tests/contract tests/simulation $(PYTEST_ARGS)

soak: stubs
	@HEADRACE_SOAK_ROUNDS=$(or $(ROUNDS),100) $(BIN)/python -m pytest tests/robustness tests/simulation --timeout 0 $(PYTEST_ARGS)

# Pages that are made from tables and comments; tests hold them equal.
docs: stubs
	@$(BIN)/python -m tools.outcomes_doc
	@$(BIN)/python -m tools.commands_doc
	@$(BIN)/python -m tools.api_reference
	@$(BIN)/python -m tools.errors_doc
	@$(BIN)/python -m tools.troubleshooting_doc
	@$(BIN)/python -m tools.file_schemas
	@$(BIN)/python -m tools.metrics_doc
	@$(BIN)/python -m tools.grafana_dashboards
	@$(BIN)/python -m tools.bench_tables

tools: stubs
	@$(BIN)/python tools/real_tools.py grpcurl
	@$(BIN)/python tools/real_tools.py jaeger

lock:
	@$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build dist headrace/api .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
