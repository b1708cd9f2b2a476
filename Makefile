PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo fmt lint type arch test test-all test-peers bench gpu docs check clean

help:      ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP) ## a virtual environment with everything, in .venv

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard mergeflow/executor/_*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev --editable ".[demo]"
	@touch $(STAMP)

demo: $(STAMP) ## merge real trained weights, from nothing to a table of accuracies
	$(BIN)/python recipes/demo/demo.py

fmt: $(STAMP) ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## ruff and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

arch: $(STAMP) ## the import layers
	$(BIN)/lint-imports

test: $(STAMP) ## unit, property, contract, golden, fault and command line tests
	$(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-all: $(STAMP) ## the slow rest as well; whatever tests build is accepted by `mergeflow verify`
	$(BIN)/pytest -m "not gpu" -n 2 --dist loadfile --verify-outputs

test-peers: $(STAMP) ## methods against sd-mecha and mergekit, in an environment of their own
	$(BIN)/python -m bench.peers
	$(BIN)/pytest tests/peers

bench: $(STAMP) ## side by side with other tools on full-size files; writes docs/benchmarks.md
	$(BIN)/python -m bench.run --write-docs

gpu: $(STAMP) ## tests and timings on an accelerator; says so where there is none
	$(BIN)/python -m bench.gpu

build/%.safetensors: recipes/%.yaml | $(STAMP) ## the output of that name of a recipe
	@mkdir -p build/deps
	$(BIN)/mergeflow build $< $@ --depfile build/deps/$*.d

-include $(wildcard build/deps/*.d)

docs: $(STAMP) ## rewrite what is generated: docs/cli.md and the JSON Schema
	$(BIN)/python -m docs.generate

check: lint type arch test ## what CI runs

clean:     ## build litter; never cache/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
