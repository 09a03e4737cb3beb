# `make demo` and `make test` do everything on a machine that has Python >= 3.10 and make:
# environment, locked install, the job. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := .venv-docs
# Python keeps the bytecode of what is imported, whatever the machine says: without it, importing torch takes 7 s instead
# of 2, in every process. Compiling all that is installed beforehand, four times as many modules, takes a minute.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: environment demo demo-seeds test test-fast test-lowest coverage check audit docs dist lock clean

environment: $(READY)

demo: $(READY)
	$(BIN)/anchored study demo -o runs/demo --workers 2

demo-seeds: $(READY)
	$(BIN)/anchored study demo-seeds -o runs/demo-seeds

# Two files at once, one thread each: threads that share a core with others wait for one another most of the time.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# All but what trains for long, kills processes or starts clusters.
test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# The lowest versions that pyproject.toml allows, for what it names: ranges are promises. Take the oldest Python.
test-lowest:
	test -x .venv-lowest/bin/uv || { $(PYTHON) -m venv .venv-lowest && .venv-lowest/bin/python -m pip install --quiet 'uv>=0.5'; }
	.venv-lowest/bin/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --no-emit-index-url --quiet \
		--python .venv-lowest/bin/python -o .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --quiet -r .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --quiet --no-deps --editable .
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" -o filterwarnings=default

# Lines of src/ that the fast tests run, and those that they do not.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow" --cov=src/anchored --cov-report=term-missing:skip-covered

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities of the locked versions.
audit: $(READY)
	$(BIN)/python scripts/audit.py

# The site, in site/. A warning (a dead link, say) is an error. Its environment is a light one of its own: pages made
# of the code need no torch. Nothing on it is loaded from elsewhere.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo "Written: site/index.html; with search: $(PYTHON) -m http.server -d site"

$(DOCS)/.ready: requirements-docs.lock
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet 'uv>=0.5'
	$(DOCS)/bin/uv pip sync --python $(DOCS)/bin/python --quiet requirements-docs.lock
	touch $(DOCS)/.ready

# uv installs the locked versions in parallel and shares files between environments.
$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.5'
	$(BIN)/uv pip sync --python $(BIN)/python --quiet requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $(READY)

# Wheel and sdist, checked, in dist/. Needs no torch.
dist:
	test -x .venv-dist/bin/twine || { $(PYTHON) -m venv .venv-dist && \
		.venv-dist/bin/python -m pip install --quiet build twine check-wheel-contents; }
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist .
	.venv-dist/bin/twine check --strict dist/*
	.venv-dist/bin/check-wheel-contents dist/*.whl

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra embed --universal --python-version 3.10 \
		--no-emit-index-url --upgrade --custom-compile-command 'make lock' -o requirements.lock
	$(BIN)/uv pip compile --group docs --universal --python-version 3.10 \
		--no-emit-index-url --upgrade --custom-compile-command 'make lock' -o requirements-docs.lock

clean:
	rm -rf $(VENV) $(DOCS) .venv-dist .venv-lowest dist runs site
