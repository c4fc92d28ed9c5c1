# make demo, make test and make evaluate do all the set-up: they make a virtual environment and install what they need.
# A host's tests and demo use the ComfyUI at COMFYUI_PATH (default ~/comfy/ComfyUI) with the Python at COMFYUI_PYTHON.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test evaluate bench gpu lint format api blueprints pictures clean

$(READY): requirements.txt tests/requirements.txt training/requirements.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py

# Measure what the nano model can do on clips that it never saw, into evaluation_output.
evaluate: $(READY)
	$(BIN)/python training/run.py evaluate

# Measure speed and memory beside diffusers, into bench_output.
bench: $(READY)
	$(BIN)/python benchmarks/run.py

# Measure on an NVIDIA GPU, into gpu_output, with the ComfyUI at COMFYUI_PATH and the Python that runs it.
gpu:
	$(or $(COMFYUI_PYTHON),python3) -m benchmarks.gpu.run

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Convert the workflows to the API form that the host tests post, with the host's own front end in headless Chromium.
api: $(READY)
	$(BIN)/python tools/export_api.py

# Fold workflows up into the blueprints of subgraphs/.
blueprints: $(READY)
	$(BIN)/python tools/make_blueprints.py

# Picture the workflows' graphs, and what the nano model makes of them, in the host's own front end.
pictures: $(READY)
	$(BIN)/python tools/pictures.py

clean:
	rm -rf $(VENV) demo_output evaluation_output bench_output gpu_output
