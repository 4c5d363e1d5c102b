# Every target makes what it needs: a fresh clone runs `make demo` or `make test` with nothing but Python 3.11 or newer.
#   make demo TORCH_INDEX=https://...   takes torch and torchvision from another index (README: the small CPU wheels)
#   make test CONSTRAINTS=/dev/null     takes the newest versions in place of those the tests were last run with
#   make test PYTEST_ARGS="-k views"    passes arguments on to pytest

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
TORCH ?= torch
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS)
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} NUMBA_NUM_THREADS=$${NUMBA_NUM_THREADS:-1}
PYTEST_ARGS ?= -n 2 --dist worksteal
# measure.py is what the others measure with; cifar.py takes a quarter of an hour a method (docs/results.md).
BENCHMARKS ?= $(filter-out benchmarks/measure.py benchmarks/cifar.py benchmarks/teachers.py,$(sort $(wildcard benchmarks/*.py)))

.PHONY: help demo test lint format docs bench fidelity browser install install-dev clean
help:
	@echo "make demo      pretrain on bundled photographs on this machine, then show what was gained"
	@echo "make test      the whole test suite"
	@echo "make lint      ruff, mypy, import floors"
	@echo "make docs      the documentation as HTML in site/"
	@echo "make bench     every benchmark against its peers; results in benchmarks/results"
	@echo "make fidelity  how closely each method follows its reference"
	@echo "make browser   Chromium for the test that opens the report"

# torch comes first and alone: it is the one package whose build a machine may want to choose.
$(VENV)/.base: pyproject.toml $(wildcard $(CONSTRAINTS))
	@test -n "$(PYTHON)" || { echo "error: Imprint needs Python 3.11 or newer; set PYTHON=/path/to/python3." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch into $(VENV) (once; the CUDA build is several gigabytes)"
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH) $(if $(TORCH_INDEX),torchvision)
	@echo "installing imprint and what it needs"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing what tests, lint and documentation need"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing what the benchmarks compare with"
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

install: $(VENV)/.base
install-dev: $(VENV)/.dev

demo: $(VENV)/.base
	$(BIN)/imprint demo

test: $(VENV)/.dev
	$(THREADS) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(THREADS) $(BIN)/python -m pytest -q tests/test_floors.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

bench: $(VENV)/.bench
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

fidelity: $(VENV)/.dev
	$(THREADS) $(BIN)/python -m pytest -q tests/parity
	@$(THREADS) $(BIN)/python tests/parity/fidelity.py >/dev/null
	$(BIN)/imprint methods --fidelity

# Only a browser that is absent is installed, and only where that is plainly possible.
browser:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then \
		echo "a browser is there"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && echo "chromium installed"; \
	else \
		echo "Install Chromium with your system's packages (Debian: apt-get install chromium; macOS: brew install --cask chromium);" >&2; \
		echo "without it the report is tested in all but a browser." >&2; exit 1; \
	fi

clean:
	rm -rf site build .pytest_cache .mypy_cache .ruff_cache
