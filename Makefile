# The two commands of the README are `make demo` and `make test`. Everything is installed into $(VENV), nothing else
# is touched. Variables can be given on the command line: `make demo TIME=30m OUTPUT=longer-run`.

PYTHON ?= python3
VENV ?= .venv
TIME ?= 10m
OUTPUT ?= demo-run
MODEL ?= SmolLM2-135M-Instruct
# Test files run in so many processes, each file in one; `make test PROCESSES=0` runs all in this one. Tests that kill
# processes by the clock (`alone`) come after the others, in the same way; what PYTEST chooses runs in one go.
PROCESSES ?= 2
# PyPI's torch for Linux brings gigabytes of CUDA libraries. Installed first and by version, it is whichever build
# your pip prefers; with PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or its wheel in PIP_FIND_LINKS, that is the small one.
TORCH ?= torch==2.13.0

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint format docs clean distclean help

help:
	@echo "make demo       fit the default model on the fact set in $(TIME), report in $(OUTPUT)/report.html"
	@echo "make test       all tests (fetches a 98 MB model once)"
	@echo "make lint       ruff and mypy        make format   let ruff rewrite"
	@echo "make docs       the documentation as HTML in site/"
	@echo "make clean      remove what tools left behind      make distclean   and $(VENV) and $(OUTPUT)"

demo: $(VENV)/.installed
	$(BIN)/foretune models fetch $(MODEL)
	@if [ -e "$(OUTPUT)/result.json" ]; then \
		echo "$(OUTPUT) holds a finished run; this is its result. \`make demo OUTPUT=another\` makes a new one."; \
		$(BIN)/foretune report "$(OUTPUT)"; \
	else \
		$(BIN)/foretune fit facts --model $(MODEL) --time $(TIME) --output "$(OUTPUT)" && \
		echo && echo "The report is in $(OUTPUT)/report.html"; \
	fi

test: $(VENV)/.installed-test
ifdef PYTEST
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(PYTEST)
else
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile -m 'not alone'
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile -m alone
endif

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/mkdocs build --strict

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Foretune needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)-docs/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip --disable-pip-version-check install 'mkdocs>=1.6'
	@touch $@

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf "$(VENV)" "$(VENV)-docs" "$(OUTPUT)"
