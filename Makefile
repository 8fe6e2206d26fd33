# Every target builds its own virtual environment, from the package index and the lock in constraints.txt alone.
PYTHON ?= python3
BIN := .venv/bin
# What every target keeps to, `make oldest` and `make latest` too: the index has other versions of torch with gigabytes of CUDA only.
TORCH := 2.13.0
PIP := -m pip --quiet --disable-pip-version-check
OLDEST_PYTHON := 3.11

# The tests in the environment $(1). bitsandbytes and torchao lie beside it, for a run of their own: PEFT imports whichever
# is installed, which takes seconds in every process.
define run_tests
	PYTHONPATH=$(1)/quantised OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses 2 -m "quantised and not slow" \
	  tests/adapters/test_quantised.py tests/adapters/test_quantised_language_models.py tests/collection/test_low_precision.py
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses 2 --dist worksteal -m "not slow and not quantised" $(ARGS)
endef

.PHONY: demo test latest oldest slow bench docs release style quality dist lock clean

demo: .venv/.demo  ## Fine-tune a small model on the demo's text and compare MAP with SWAG
	$(BIN)/python examples/quickstart.py

test: quality .venv/.quantised  ## What CI runs
	$(call run_tests,.venv)

slow: .venv/.dev  ## What takes longer than CI should
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow $(ARGS)

latest: .venv-latest/.dev .venv-latest/.quantised  ## The tests against the newest versions that pyproject.toml allows
	$(call run_tests,.venv-latest)

oldest: .venv-oldest/.dev .venv-oldest/.quantised  ## The tests against the oldest versions that pyproject.toml allows
	$(call run_tests,.venv-oldest)

bench: .venv/.dev  ## Tables of ratios, measured side by side
	$(BIN)/python benchmarks/collection.py

docs: .venv/.docs  ## Build the documentation into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: dist  ## Build wheel and sdist, and run the README with the wheel alone, in an environment of its own
	rm -rf .venv-release
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python $(PIP) install --constraint constraints.txt pip setuptools
	.venv-release/bin/python $(PIP) install --constraint constraints.txt "$$(ls dist/*.whl)[cli]"
	.venv-release/bin/python tests/run_documents.py README.md
	ls -l dist

style: .venv/.dev  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: .venv/.dev  ## Shape and import arrows, checked only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

dist: .venv/.dev  ## Wheel and sdist of the commit, the same bytes wherever they are built
	rm -rf dist
	$(BIN)/python .ci/build_dist.py

lock:  ## Write constraints.txt anew: every version that the extras install today
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	echo 'torch==$(TORCH)' > .venv-lock/torch.txt
	.venv-lock/bin/python $(PIP) install --upgrade pip setuptools
	.venv-lock/bin/python $(PIP) install --constraint .venv-lock/torch.txt --editable '.[dev,docs,quantised]'
	(echo '# Made by `make lock`: every version that `make demo`, `make test` and `make docs` install, for Python $(OLDEST_PYTHON) and later.'; \
	  .venv-lock/bin/python $(PIP) freeze --all --exclude-editable | sed 's/+cpu$$//') > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-lock .venv-release build demo-output dist site

.venv/.demo .venv/.dev .venv/.docs: pyproject.toml constraints.txt | .venv/.python
	$(BIN)/python $(PIP) install --constraint constraints.txt pip setuptools
	$(BIN)/python $(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[$(patsubst .%,%,$(@F))]'
	touch $@

%/.quantised: pyproject.toml constraints.txt | %/.python
	$(@D)/bin/python $(PIP) install --constraint constraints.txt --no-deps --target $(@D)/quantised bitsandbytes torchao
	touch $@

.venv-latest/.dev: pyproject.toml | .venv-latest/.python
	echo 'torch==$(TORCH)' > .venv-latest/constraints.txt
	.venv-latest/bin/python $(PIP) install --upgrade --constraint .venv-latest/constraints.txt --editable '.[dev]'
	touch $@

.venv-oldest/.dev: pyproject.toml | .venv-oldest/.python
	$(PYTHON) tests/lower_bounds.py | sed 's/^torch==.*/torch==$(TORCH)/' > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(PIP) install --constraint .venv-oldest/constraints.txt --editable '.[dev]'
	touch $@

%/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swag_trainer needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $*
	touch $@
