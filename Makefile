# Every target is a few plain commands; `make demo` and `make test` need only Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OPS = $(VENV)-ops
WITH_OPS = $(addprefix tests/,graph/test_ops.py graph/test_neighbors.py nn/test_layers.py \
	models/test_drop_in.py models/test_forces.py models/test_hipnn.py)

.PHONY: demo test test-ops test-browser lint types tables docs bench clean

# QM9 from the qm9pack wheel, a short real training, the table beside the paper's numbers, plots.
demo: $(VENV)/installed
	$(BIN)/hipnn train qm9 --source qm9pack --epochs 2 --run runs/demo $(DEMO)
	$(BIN)/hipnn evaluate runs/demo
	$(BIN)/hipnn plot runs/demo
	$(BIN)/hipnn predict --model runs/demo CCO "c1ccccc1" "CC(=O)N"

# Two processes of one thread each: with more on two cores they wait for one another.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST)

# The page of hipnn explain in a real browser: Chromium, Chrome or Edge must be on the path.
test-browser: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[browser]"
	$(BIN)/python -m pytest -m browser tests/cli/test_explain_browser.py

# Neighbour, layer and SchNet tests with torch-cluster and torch-scatter (built from source) and
# torch-geometric 2.7, whose radius_graph uses them.
test-ops: $(OPS)/installed
	OMP_NUM_THREADS=1 $(OPS)/bin/python -m pytest -n 2 -m "ops or not ops" $(WITH_OPS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# The tables of the README, from the files in results/.
tables: $(VENV)/installed
	$(BIN)/python benchmarks/readme_tables.py

# The documentation, in site/; a warning is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(DOCS)

# Every figure of benchmarks/README.md beside the peers' (at most 10 minutes on 2 quiet cores).
bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py $(BENCH)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

$(OPS)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPS)
	sed 's/^torch-geometric==.*/torch-geometric==2.7.0/' constraints.txt > $(OPS)/constraints.txt
	$(OPS)/bin/pip install -q -c $(OPS)/constraints.txt torch "setuptools<81" wheel ninja
	PATH="$(abspath $(OPS))/bin:$$PATH" $(OPS)/bin/pip install -q -c $(OPS)/constraints.txt --no-build-isolation -e ".[ops,test]"
	touch $@

clean:
	rm -rf $(VENV) $(OPS) site
