# Two commands for a fresh machine: `make tune` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WITH_CUDA := $(VENV)/.ready-cuda
BUDGET ?= 4m

.PHONY: tune test setup board lint smoke clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

# 360 MB that only GPUs' presets want: tuning for this CPU does without.
$(WITH_CUDA): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	touch $(WITH_CUDA)

setup: $(WITH_CUDA)

# The main job: tune MobileNet V1 1.0-224 for this CPU, then compile, check and measure it.
tune: $(READY)
	$(BIN)/python -m mobilenet_tvm.tune --target x86 --time-budget $(BUDGET)

# An emulated aarch64 board, in the user's cache: half a minute, once, and no root.
board: $(READY)
	$(BIN)/python -m mobilenet_tvm.devices.qemu || echo "its tests are skipped"

test: $(WITH_CUDA)
	$(MAKE) --no-print-directory -j 2 lint board
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Seconds, not minutes: before every commit.
smoke: $(WITH_CUDA)
	$(BIN)/python -m pytest -q -m "not slow" -x

clean:
	rm -rf $(VENV) out
