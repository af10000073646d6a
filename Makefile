# cryptoexp: `make help` tells what there is
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PARAMETERS := settings.ini setup.py
JOBS ?= 2
ARGS ?=
export PYTHONUTF8 := 1
# A session of ten seconds compiles the engine into Numba's cache, so that the first real one need not wait for it.
COMPILE = echo 'compiling the engine, once ...' && $(BIN)/cryptoexp trade --duration 10s --json --out $(STAMPS)/first >/dev/null

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-node fuzz soak soak-monitor evals docs lab bench notebooks clean

help: ## what there is
	@echo 'make <target>:'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

run: $(STAMPS)/package ## paper-trade BTC/USDT on the embedded market (more: make run ARGS='--help')
	@$(BIN)/cryptoexp trade $(ARGS)

test: $(STAMPS)/dev ## everything: notebooks, tests, lint, types, modules in sync, the site
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-long: $(STAMPS)/dev ## the same, with what takes minutes
	@$(BIN)/python -m pytest -n $(JOBS) --long $(ARGS)

test-node: $(STAMPS)/dev ## against a real Bitcoin Core, built once (seven minutes; it says what the build lacks)
	@$(BIN)/python tests/build_node.py
	@$(BIN)/python -m pytest tests/test_core_node.py $(ARGS)

fuzz: $(STAMPS)/dev ## search for bytes that break the parsers of the chain, a minute (longer: ARGS='-max_total_time=600')
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris 2>/dev/null; \
	then $(BIN)/python tests/fuzz_chain.py $(ARGS); \
	else echo 'make fuzz: skipped, atheris has no wheel for this Python and machine'; fi

soak: $(STAMPS)/dev ## a feed left on for ten minutes: memory and delays (other times: ARGS='--minutes 60')
	@$(BIN)/python tests/soak.py $(ARGS)

evals: $(STAMPS)/dev ## what an analyst's answers are worth (another endpoint: ARGS='--base-url URL --model NAME'; --small: that of the tests)
	@$(BIN)/python evals/run.py $(ARGS)

soak-monitor: $(STAMPS)/dev ## the Bitcoin monitor left on for ten minutes at 700 transactions a second: memory (ARGS='--minutes 60')
	@$(BIN)/python tests/soak_monitor.py $(ARGS)

docs: $(STAMPS)/dev ## README.md and the site, to _docs/
	@$(BIN)/python docs/readme.py
	@$(BIN)/python docs/build_site.py

lab: $(STAMPS)/lab ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=nbs

bench: $(STAMPS)/dev ## the benchmarks, each beside the other way of doing it
	@set -e; for script in benchmarks/[!_]*.py; do \
		test -f "$$script" || { echo 'make bench: there is no script in benchmarks/'; exit 1; }; \
		echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

notebooks: $(STAMPS)/dev ## export the modules, run every notebook in place and store what it shows
	@$(BIN)/nbdev_export
	@$(BIN)/python docs/run_notebooks.py --jobs $(JOBS) $(ARGS)
	@$(BIN)/python docs/readme.py

clean: ## what was made, except .venv and the runs
	rm -rf _docs _proc site build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find nbs cryptoexp tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The environment. A stamp is older than what decides its content, or nothing is installed again.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "cryptoexp needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
		echo 'Name another one: make <target> PYTHON=python3.12'; exit 1; } >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu the package python3-venv is missing."; exit 1; } >&2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: $(STAMPS)/venv $(PARAMETERS)
	@echo 'installing cryptoexp ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@$(COMPILE)
	@touch $@

$(STAMPS)/dev: $(STAMPS)/venv $(PARAMETERS)
	@echo 'installing cryptoexp and what the tests and the site need (the first time takes a minute or two) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(COMPILE)
	@touch $@ $(STAMPS)/package

$(STAMPS)/lab: $(STAMPS)/dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,lab]'
	@touch $@
