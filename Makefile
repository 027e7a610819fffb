# One obvious command for each habit. Each does its own set-up: a fresh machine needs Python 3.11+, make,
# and the package registries.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The first commands of many people need a fraction of the packages of the tests.
DEMO := build/demo

# Most tests wait for other processes, so that more of them than cores run side by side.
TEST_PROCESSES ?= 4

# Tests of the parts that other packages could break.
LOWEST := tests/protocol tests/values tests/io tests/comm tests/frameworks tests/django tests/engine/api tests/engine/sqlite tests/otel

# Tests of the parts that another version of Python or Django could break.
CORE := tests/protocol tests/execution tests/functions tests/values tests/io tests/comm tests/frameworks tests/django tests/outbox tests/engine/core tests/engine/model tests/engine/api tests/engine/sqlite tests/embedded

# The port of the engine of make dev.
PORT ?= 8288
APP_PORT ?= 8000

# Each of these is a project of its own, with modules of the same names; the other examples are single files.
PROJECTS := $(wildcard examples/temporal_*)
EXAMPLES := $(filter-out $(addsuffix /%,$(PROJECTS)),$(wildcard examples/*.py examples/*/*.py))

CHECK_PYTHON := 'import sys; sys.exit(sys.version_info < (3, 11) and "Durably needs Python 3.11 or later; set PYTHON=")'

.PHONY: help files demo demo-cluster demo-failover demo-temporal dev pictures test test-slow test-lowest test-python conformance-temporal soak fuzz-temporal lint format docs docs-links bench constraints release published clean

help:
	@echo "make demo           run the example once, on the embedded engine, and show the run"
	@echo "make demo-temporal  the same on Temporal's development server: one order shipped, one cancelled"
	@echo "make demo-cluster   the FastAPI example on two workers on Temporal; one is killed in the middle of a run"
	@echo "make demo-failover  one order on three machines that share a commit log; the leader is lost in the middle"
	@echo "make dev            the demo and runs of every kind, and stay up; PORT=8299 if 8288 is taken, APP_PORT=8010 if 8000 is"
	@echo "make test           the tests, without costly variants"
	@echo "make test-slow      the costly variants, which CI runs too"
	@echo "make test-lowest    tests of what depends on other packages, with the lowest versions that we accept"
	@echo "make test-python    the core of the tests on another Python; PYTHON=python3.14, and DJANGO='4.2.*' for another Django"
	@echo "make conformance-temporal  all tests of the protocol, on the engine on Temporal"
	@echo "make soak           hundreds of crashes under load, an hour of them; SOAK='--blows 1000 --seed 7'"
	@echo "make fuzz-temporal  ten thousand malformed requests to the gateway in each framework; FUZZ='--requests 500 --absent'"
	@echo "make lint           formatting, lint, types"
	@echo "make format         format the code"
	@echo "make docs           the site in build/docs; a broken link or anchor fails"
	@echo "make files          each file with its purpose; FOLDER=src/durably/cli for those of one folder"
	@echo "make pictures       pictures of the dashboard for the README and the docs; ALL=1 for all pages, in build/pictures"
	@echo "make docs-links     requests each address outside of the docs"
	@echo "make release        wheel, source distribution and bill of materials in dist, checked"
	@echo "make published      once the package is on PyPI: the docs say pip install durably"
	@echo "make bench          benchmarks, side by side with peers"

demo: $(DEMO)/.ready
	$(DEMO)/bin/python -m examples.demo

demo-temporal: $(READY)
	$(BIN)/python -m examples.demo_temporal

demo-cluster: $(READY)
	$(BIN)/python -m examples.demo_cluster

demo-failover: $(DEMO)/.ready
	$(DEMO)/bin/python -m examples.demo_failover

dev: $(READY)
	$(BIN)/python -m examples.demo --stay --port $(PORT) --app-port $(APP_PORT)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal -m "slow and not soak"

# The lowest versions of direct dependencies, in an environment of their own.
test-lowest:
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lowest/bin/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --editable ".[all]" --group test
	build/lowest/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(LOWEST)

test-python:
	@$(PYTHON) -c $(CHECK_PYTHON)
	$(PYTHON) -m venv --clear build/python
	build/python/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/python/bin/uv pip install --quiet --python build/python/bin/python --constraint constraints.txt --editable ".[all]" --group test
	$(if $(DJANGO),build/python/bin/uv pip install --quiet --python build/python/bin/python "django==$(DJANGO)")
	build/python/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(CORE)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases $(EXAMPLES)
	for project in $(PROJECTS); do $(BIN)/mypy $$project || exit 1; done
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

conformance-temporal: $(READY)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) -rs --engine temporal tests/conformance/test_engine_*.py

soak: $(READY)
	$(BIN)/python -m tests.crash.soak $(SOAK)
	$(BIN)/python -m tests.crash.soak --log --blows 500 $(SOAK)
	$(BIN)/python -m tests.crash.soak --log s3 --blows 100 $(SOAK)
	$(BIN)/python -m tests.engine.temporal.faults.soak $(SOAK)
	CRASH_SEED=$${CRASH_SEED:-$$(date +%s)} CRASH_CRON_BLOWS=100 $(BIN)/python -m pytest tests/crash/test_cron_crashes.py -o timeout=3600
	$(BIN)/python -m pytest -m soak -o timeout=3600
	DURABLY_EXAMPLES=40 $(BIN)/python -m pytest tests/engine/core tests/app_and_engine/flow_control/test_histories.py -o timeout=3600
	DURABLY_CHAOS_ROUNDS=200 $(BIN)/python -m pytest -m "not soak" tests/embedded/servers/test_chaos.py -o timeout=7200

fuzz-temporal: $(READY)
	$(BIN)/python -m tests.temporal.fuzz $(FUZZ)

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs build/docs
	@echo "the site is at build/docs/index.html"

files:
	@$(PYTHON) docs/files.py $(FOLDER)

pictures: $(READY)
	$(BIN)/python -m tests.dashboard.pictures $(if $(ALL),--all)

docs-links: docs
	$(BIN)/sphinx-build --quiet --builder linkcheck docs build/docs-links

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	-$(BIN)/python -m benchmarks.restate
	$(BIN)/python -m benchmarks --save

# The dependencies' versions that make and CI install; names and versions only.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/constraints/bin/python -m pip install --quiet --editable ".[all]" --group lint --group test --group docs
	build/constraints/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf build/constraints

# The bill of materials lists what `pip install "durably[all]"` brings, with the versions of constraints.txt.
release:
	rm -rf dist build/release && $(PYTHON) -m venv build/release/tools && $(PYTHON) -m venv build/release/all
	build/release/tools/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/release/tools/bin/python -m pip install --quiet --constraint constraints.txt --group release
	build/release/tools/bin/python -m build --outdir dist
	build/release/tools/bin/twine check --strict dist/*
	build/release/all/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[all]"
	build/release/tools/bin/cyclonedx-py environment --output-reproducible --output-file dist/durably.cdx.json build/release/all

# One place to switch: until then each page installs a clone.
published:
	grep -rl "path/to/durably" README.md docs examples | xargs sed -i 's#path/to/durably#durably#g'

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .durably

$(DEMO)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c $(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(DEMO)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[engine,fast-api,postgres]" --group demo
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c $(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group lint --group test
	@touch $@
