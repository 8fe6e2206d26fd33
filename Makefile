# Every target builds .venv by itself, from the package index alone.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test slow bench style quality clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## Fine-tune a small model on the demo's text and compare MAP with SWAG
	$(BIN)/python examples/quickstart.py

test: quality  ## What CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "not slow" $(ARGS)

slow: $(INSTALLED)  ## What takes longer than CI should
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow $(ARGS)

bench: $(INSTALLED)  ## Tables of ratios, measured side by side
	$(BIN)/python benchmarks/collection.py

style: $(INSTALLED)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)  ## Shape and import arrows, checked only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf .venv demo-output
