# Every target but gpu and clean makes a virtual environment first and installs what it needs: see CONTRIBUTING.md.
# Demo, tests and benchmarks use the ComfyUI at COMFYUI_PATH (default ~/comfy/ComfyUI), run by COMFYUI_PYTHON.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FRONTEND ?=
FRONT_END := $(if $(FRONTEND),$(VENV)/front_end/$(FRONTEND)/comfyui_frontend_package/static)
NODES ?=
TESTS ?=
LONG ?=
WORKERS ?= 2
THREADS ?= 1

.PHONY: demo test evaluate bench gpu lint format api templates pictures clean

$(READY): requirements.txt tests/requirements.txt training/requirements.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $(READY)

# Make a video with the nano model, into demo_output.
demo: $(READY)
	$(BIN)/python tools/demo.py

# Measure what the nano model can do, on clips that were not used in training, into evaluation_output.
evaluate: $(READY)
	$(BIN)/python training/run.py evaluate

# Measure speed and memory, compared with diffusers, and write docs/performance.md.
bench: $(READY)
	$(BIN)/python benchmarks/run.py

# Measure on an NVIDIA GPU, into gpu_output, with the ComfyUI at COMFYUI_PATH and the Python that runs it.
gpu:
	$(or $(COMFYUI_PYTHON),python3) -m benchmarks.gpu.run

# Run the linter and the short tests; LONG=1 runs all tests, TESTS=... all in a folder or file. FRONTEND=1.58.1 tests that
# front end of PyPI, NODES=2 its other renderer.
test: $(READY) lint $(FRONT_END)
	$(if $(FRONT_END),COMFYUI_FRONT_END=$(abspath $(FRONT_END))) COMFYUI_NODES=$(NODES) OMP_NUM_THREADS=$(THREADS) \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		$(if $(LONG)$(TESTS),,--quick) $(TESTS)

$(FRONT_END): | $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/front_end/$(FRONTEND) \
		comfyui-frontend-package==$(FRONTEND)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Convert the workflows to the API form that the tests use, with ComfyUI's front end in headless Chromium.
api: $(READY)
	$(BIN)/python tools/export_api.py

# Write the templates in workflows/ and the blueprints in subgraphs/ from their source, tools/templates.
templates: $(READY)
	$(BIN)/python tools/make_templates.py

# Draw the workflows' graphs, and what the nano model makes with them, in ComfyUI's front end.
pictures: $(READY)
	$(BIN)/python tools/pictures.py

clean:
	rm -rf $(VENV) demo_output evaluation_output gpu_output
