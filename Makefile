# `make` lists the targets. Everything runs in .venv, which is made when it is missing.
PYTHON ?= python3
# More arguments for pip; without a GPU, a much smaller download:
#   make env PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# More arguments for pytest, e.g. PYTEST_ARGS="-m 'not slow' tests/test_train.py"
PYTEST_ARGS ?=
# Test processes. Each runs torch on one thread: for the small tensors of the tests two processes beat two threads.
WORKERS ?= 2
BOOK_ARGS ?=
# Runs of a campaign, as shell patterns in the order in which they are to be done.
RUNS ?= '*'
# Training seeds; that of the committed checkpoints is 0.
SEEDS ?= 0 1 2

BIN := .venv/bin
# The stamp is named after the contents of the two files: touching them, or changing branch and back, reinstalls nothing.
STAMP := .venv/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr ' ' -)

.PHONY: help env book figures digits faces32 faces cifar10 crystals showcase campaign measure test lint format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 ]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## make .venv and install the library, the book's and the tests' tools, with the pinned versions

$(STAMP): | pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with PYTHON=...'; exit 1; }
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[book,test,dev]'
	@rm -f .venv/.installed-*
	@touch $@

# --all reads every page again, so that a warning of an earlier build is never forgotten; cells come from the cache.
book: env ## run the notebooks and build the book; a warning or a traceback on a page fails
	$(BIN)/jupyter-book build book/ --all -W --keep-going $(BOOK_ARGS)
	@! grep -rlF --include='*.html' 'Traceback (most recent call last)' book/_build/html || \
		{ echo 'The pages above hold a traceback.'; exit 1; }
	@echo 'The book: book/_build/html/index.html'

figures: env ## draw every picture and table again into figures/, from records and checkpoints (and run 03_train if runs/ lacks it)
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/papermill $$notebook /dev/null -p save $(CURDIR)/figures --no-progress-bar || exit 1; \
	done

digits faces32 faces cifar10 crystals showcase: env ## train what runs/ lacks of its experiments, with each seed, and go on with what was cut
	for seed in $(SEEDS); do for file in notebooks/experiments/$@-*.yaml; do \
		name=$$(basename $$file .yaml); [ $$seed = 0 ] || name=$$name-seed$$seed; \
		$(BIN)/python -m kflow.train $$file seed=$$seed name=$$name || exit 1; \
	done; done

# One thread a process: that is faster than one process with all threads.
campaign: env ## train and measure all runs whose records are missing, one process a core; make campaign RUNS='digits-db6 faces32-*'
	pids=; trap 'kill $$pids' INT TERM; for core in $$(seq $(WORKERS)); do \
		OMP_NUM_THREADS=1 $(BIN)/python -m kflow_book.campaign $(RUNS) & pids="$$pids $$!"; \
	done; bad=0; for pid in $$pids; do wait $$pid || bad=1; done; exit $$bad

measure: env ## compute the records in figures/records that are missing or stale, from checkpoints/ and runs/
	$(BIN)/python -m kflow_book.measure

test: env ## run the tests
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: env ## check formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: env ## format, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the built book, its cache and other leftovers; .venv and runs/ stay
	rm -rf book/_build .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find kflow tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
