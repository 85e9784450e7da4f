# Every target does its own set-up in .venv; Python 3.11 (or 3.10 and later), git and make are all it takes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all check format bench bench-paper peers clean

demo: $(STAMP)
	$(BIN)/datafree demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(MAKE) test

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python bench/zoo.py

# The paper's comparisons, on networks trained here; NETWORKS=resnet20_cifar10 with the folder of trained networks
bench-paper: $(STAMP)
	$(BIN)/python bench/paper.py $(if $(NETWORKS),--networks $(NETWORKS))

# Other packages on the same networks, in an environment of their own
peers: $(STAMP)
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement bench/peers/requirements.txt
	$(BIN)/python bench/peers.py $(if $(NETWORKS),--networks $(NETWORKS))

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis build
