# make run    set up, measure the claims of the activation papers, say where the report lies
# make serve  set up, open the feed, the search and the papers with the verdicts of the store
# make test   set up, lint, types, tests
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
AREA ?= activations
TIER ?= desk
PORT ?= 8000

.PHONY: help run test test-slow test-gpu lint bench serve report clean

help:
	@grep '^# make' Makefile | cut -c 3-

$(BIN)/python:
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# What `make run` needs; $(VENV)/site adds what the pages need, $(VENV)/dev what the tests need.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing paperworks (constraints.txt has the exact versions)"
	@$(PIP) --editable '.[$(AREA)]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing paperworks and what its tests need"
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $(VENV)/site $@

$(VENV)/site: $(VENV)/installed
	@echo "installing what the pages need"
	@$(PIP) --editable '.[web]'
	@touch $@

run: $(VENV)/installed
	@$(BIN)/paperworks run --area $(AREA) --tier $(TIER)
	@$(BIN)/paperworks report --area $(AREA)
	@echo "make serve    opens the feed, the search and every paper with these verdicts"

report: $(VENV)/installed
	@$(BIN)/paperworks report

lint: $(VENV)/dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=30

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/dev
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/dev
	@for paper in $(basename $(notdir $(wildcard benchmarks/*.py))); do $(BIN)/paperworks bench $$paper || exit 1; done

serve: $(VENV)/site
	@$(BIN)/paperworks serve --port $(PORT)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis reports build dist
	find src tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
