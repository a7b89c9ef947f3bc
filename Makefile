# Needs Python 3.11 or newer with pip and venv, and make. Everything else is installed into $(VENV), at the versions in uv.lock.
PYTHON ?= python3
VENV   ?= .venv

UV_VERSION := 0.13.9
BIN := $(abspath $(VENV))/bin
PY  := $(BIN)/python
UV  := $(BIN)/uv
MAKEFLAGS += --no-print-directory

# uv works on this environment with this Python, and on no other.
unexport VIRTUAL_ENV
unexport UV_PYTHON
export UV_PROJECT_ENVIRONMENT := $(abspath $(VENV))
export UV_PYTHON_DOWNLOADS := never

# Tests start many hundreds of processes, and each would compile what it imports anew. Bytecode is kept with the environment.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/pycache

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check wheel oldest browser postgres soak bench notebooks lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## a researcher's morning with a budget, in the terminal: no key, no network
	@$(BIN)/tokenbudget demo

test: $(VENV)/.dev ## all that must pass: check, the built wheel, the oldest dependencies, the suite, the notebooks
	@$(MAKE) check & $(MAKE) wheel; wheel=$$?; wait $$! && exit $$wheel
	@$(MAKE) oldest
	@$(MAKE) browser
	@$(MAKE) postgres
	@$(PY) -m pytest -n auto --dist loadgroup -p no:nbmake
	@$(PY) -m pytest -q -n auto --nbmake --nbmake-timeout 120 $(wildcard notebooks/*.ipynb)

check: $(VENV)/.dev ## format, lint, types, the order of imports, the lock
	@$(UV) lock --check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet --output-format concise
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }

wheel: $(VENV)/.dev ## build sdist and wheel, and try the wheel where the source is not
	@UV=$(UV) PY=$(PY) tests/check_dist.sh wheel

oldest: $(VENV)/.dev ## a part of the suite with the lowest versions that pyproject.toml allows
	@UV=$(UV) PY=$(PY) tests/check_dist.sh oldest

# Tests of what a notebook shows need one. Where it cannot be installed they are skipped, but fail where CI is set.
browser: ## see to it that there is a Chromium, by apt where that may be used
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null && exit 0; \
	    as=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); command -v apt-get >/dev/null && $$as true 2>/dev/null && { \
	        $$as apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive $$as apt-get install -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	    } || echo "no Chromium, and no right to install one: sudo apt-get install chromium fonts-dejavu-core"

# Tests of ledgers on PostgreSQL start a server of their own, which needs its programs and nothing of the system's. As above.
postgres: ## see to it that there is PostgreSQL, by apt where that may be used
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null && exit 0; \
	    as=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); command -v apt-get >/dev/null && $$as true 2>/dev/null && { \
	        $$as apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive $$as apt-get install -qq --no-install-recommends postgresql >/dev/null; \
	    } || echo "no PostgreSQL, and no right to install it: sudo apt-get install postgresql"

soak: $(VENV)/.dev ## the long tests for MINUTES=20, or MINUTES=all, with any SEED: load, kills, faults, damage
	@$(if $(SEED),TOKENBUDGET_SEED=$(SEED)) $(PY) -m pytest -m soak --timeout 3600 \
	    $(if $(filter all,$(MINUTES)),,--soak-minutes $(or $(MINUTES),20))

bench: $(VENV)/.dev ## measure this machine
	@$(PY) benchmarks/ledger.py
	@$(PY) benchmarks/large.py
	@$(PY) benchmarks/counting.py
	@$(PY) benchmarks/estimation.py
	@$(PY) benchmarks/analysis.py
	@$(PY) benchmarks/instruments.py
	@$(PY) benchmarks/gauge.py
	@$(PY) benchmarks/postgres.py
	@$(PY) benchmarks/race.py

notebooks: $(VENV)/.dev ## make every notebook from its source, and keep what it gives
	@for source in $(wildcard notebooks/*.py); do \
	    $(BIN)/jupytext --quiet --to ipynb $$source || exit 1; \
	done
	@$(PY) -m pytest -q --nbmake --nbmake-timeout 120 --overwrite $(wildcard notebooks/*.ipynb)
	@for made in $$(grep -l '^  "widgets"' notebooks/*.ipynb); do \
	    $(BIN)/jupytext --quiet --update-metadata '{"widgets": null}' $$made || exit 1; \
	done # of widgets that are closed nothing has to be kept

lock: $(VENV)/.uv ## bring uv.lock up to date with pyproject.toml
	@$(UV) lock --default-index https://pypi.org/simple

clean: ## remove the environment, caches and builds
	@rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is missing or older than Python 3.11: name another, as in  make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# --inexact: what `make test` installed stays when `make demo` needs less.
$(VENV)/.runtime: $(VENV)/.uv uv.lock pyproject.toml
	@$(UV) sync --frozen --quiet --no-default-groups --inexact
	@touch $@

$(VENV)/.dev: $(VENV)/.uv uv.lock pyproject.toml
	@$(UV) sync --frozen --quiet --no-default-groups --group dev
	@touch $@ $(VENV)/.runtime
