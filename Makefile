# Everything from a clean clone: `make demo`, `make test`. Needs python3, make and the system's package manager.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
MINUTES ?= 30
SEED    ?= 1
REPEAT  ?= 1

# Four at a time, for most of the time they wait (tests/conftest.py); each with a broker of its own. The short ones last.
PYTEST_MANY := $(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

.DEFAULT_GOAL := help
.PHONY: bench bench-peers help venv install broker needs-broker needs-rabbitmq needs-deployed needs-browser check format test test-4x test-4x-short test-cluster test-browser soak
.PHONY: needs-debootstrap needs-machines test-walk test-unit test-python test-pythons demo clean lock wheel wheelhouse audit sbom

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

venv: $(VENV)/.made  ## the virtual environment

install: $(VENV)/.installed  ## the virtual environment with everything in it, as pinned in requirements.lock

# Debian and Ubuntu ship venv as a package of its own.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Warren needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || deploy/install-package $(notdir $(PYTHON))-venv
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# uv is faster than pip, which does it where an index of one's own is set for pip, which uv doesn't read; or where uv fails.
PIP := $(BIN)/python -m pip --disable-pip-version-check
$(VENV)/.installed: $(VENV)/.made requirements.lock pyproject.toml
	! $(PIP) config list | grep -q '[.]index-url=' \
	  && $(PIP) install --quiet "$$(grep '^uv==' requirements.lock)" \
	  && UV_CACHE_DIR=build/uv $(BIN)/uv --no-config pip install --system-certs --compile-bytecode --python $(BIN)/python \
	    --requirement requirements.lock \
	  || $(PIP) install --requirement requirements.lock
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# The package is installed only where nothing else can be a broker, and the system's own service is not started.
needs-broker: install
	@$(BIN)/python -c 'import os, sys; from broker import command; from broker.hosting import server; \
	  sys.exit(not server.can_be_up(os.environ.get("AMQP_URL", command.DEFAULT_AMQP_URL)))' \
	  || deploy/install-package rabbitmq-server

# The tests start brokers of their own, and kill them; where there can be none they skip, and fail in CI.
needs-rabbitmq: install
	@$(BIN)/python -c 'import sys; from broker.hosting import private; sys.exit(not private.is_installed())' \
	  || deploy/install-package rabbitmq-server || true

broker: needs-broker  ## a broker to work with: found, in a container, or a private process
	@$(BIN)/broker up

check: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What one test each asks of the deployment's files; where it can't be installed they skip, and fail in CI.
needs-deployed: install
	@command -v nginx >/dev/null || deploy/install-package nginx-light || true
	@command -v promtool >/dev/null || deploy/install-package prometheus || true

test: needs-rabbitmq needs-deployed  ## all tests: unit, integration, faults, attacks, system
	$(PYTEST_MANY) tests/attacks tests/faults tests/system tests/integration tests/unit

needs-debootstrap: install
	@command -v debootstrap >/dev/null || deploy/install-package debootstrap || true

# Bare Debian machines: systemd-nspawn, each with a systemd of its own. As root; what is fetched is kept in build/walk.
needs-machines: needs-debootstrap
	@command -v systemd-nspawn >/dev/null || deploy/install-package systemd-container || true

test-walk: needs-machines  ## deploy/README.md on three bare Debian machines: services, backup, move, upgrade; half an hour
	$(BIN)/python -m pytest -m soak -rP --durations 0 tests/system/test_real_machines.py

# axe-core comes by npm. Where a package can't be installed the tests skip, and fail in CI.
needs-browser: install
	@command -v chromium >/dev/null || deploy/install-package chromium || true
	@command -v chromedriver >/dev/null || deploy/install-package chromium-driver || true
	@command -v npm >/dev/null || deploy/install-package npm || true

test-browser: needs-rabbitmq needs-browser  ## the pages in a real browser; screenshots in build/screenshots
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10 tests/browser

soak: needs-rabbitmq  ## all faults at random on real processes, for MINUTES=30 (SEED=1), and the long fault tests
	$(BIN)/python -m pytest -m soak tests/faults tests/system
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

# Debian's own generation first; then 4.x, in a chroot. SOAK=1 adds the long ones: 20 kills, 75 s without a majority.
test-cluster: needs-rabbitmq  ## three real nodes, killed, restarted, without a majority, without a disk (SOAK=1: for longer)
	$(BIN)/python -m pytest $(if $(SOAK),-m "soak or not soak") -s tests/cluster
	tests/on-rabbitmq-4 $(BIN)/python -m pytest $(if $(SOAK),-m "soak or not soak") -s tests/cluster

# The chroot stays in build/rabbitmq-4 (300 MB) until `make clean`; where there can be none, that is said, and fails in CI.
test-4x: needs-rabbitmq needs-debootstrap  ## integration and faults on RabbitMQ 4.x, of Debian forky in a chroot (root, debootstrap; SOAK=1: the long ones, too)
	tests/on-rabbitmq-4 $(PYTEST_MANY) $(if $(SOAK),-m "soak or not soak") tests/faults tests/integration

# What speaks to the broker; left out is what trains with TensorFlow, or is the same whatever the broker: files, pages, experiments.
FAULTS_4X := accounts broker coordinator_killed endings hostile logins long_rounds network queues relay swarm thin_lines \
  two_coordinators undisturbed workers
INTEGRATION_4X := accounts broker_up encrypted_broker invited_link many_invitations quorum_queues rabbit_link
test-4x-short: needs-rabbitmq needs-debootstrap  ## five sixths of it, in four minutes; CI does, where there can be a chroot
	tests/on-rabbitmq-4 --if-possible $(PYTEST_MANY) $(FAULTS_4X:%=tests/faults/test_%.py) \
	  $(INTEGRATION_4X:%=tests/integration/test_%.py)

bench: needs-rabbitmq  ## what training and transport cost, beside the ideal and the floor
	$(BIN)/python -m tests.bench

bench-peers: needs-rabbitmq  ## the same, beside Flower and NVIDIA FLARE; each case REPEAT=1 times over
	$(BIN)/python -m tests.bench --peers --repeat $(REPEAT)

test-unit: install  ## the tests that need no broker
	$(PYTEST_MANY) tests/unit

demo: needs-broker  ## three workers learn to see pneumonia
	$(BIN)/python -m deploy.demo

# The versions are those of requirements.lock; the hashes are of every platform's files.
lock: install  ## requirements-runtime.lock anew: what users install, with hashes and no development tools
	( echo '# What Warren runs on, and nothing else: pip install --require-hashes -r requirements-runtime.lock'; \
	  echo '# For Python 3.11 to 3.13; made with `make lock`, of the versions in requirements.lock.'; \
	  $(BIN)/uv --no-config --quiet pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --constraint requirements.lock ) >build.lock
	mv build.lock requirements-runtime.lock

wheel: install  ## Warren itself as a wheel, in build/wheels
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/wheels ./

wheelhouse: wheel  ## a folder with all that a machine without a network needs: build/wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
	  --requirement requirements-runtime.lock --dest build/wheels
	cp requirements-runtime.lock build/wheels

audit: install  ## known vulnerabilities in requirements-runtime.lock; fails where their database can't be reached
	$(BIN)/python -m deploy.audit requirements-runtime.lock

# This one is tested by `make test`; another is tried where its interpreter is. Two files are left out that read files, and
# find the same in them on every Python: the house's rules, and what other programs say of the deployment's files.
test-pythons:  ## the unit tests, and federations that train, on each of Python 3.11 to 3.13 that is here
	@for python in python3.11 python3.12 python3.13; do \
	  found=$$($$python -c 'import sys; print(sys.executable)' 2>/dev/null || ls ~/.pyenv/versions/*/bin/$$python 2>/dev/null | tail -1); \
	  if [ -z "$$found" ]; then echo "$$python is not here: not tried"; \
	  elif [ "$$($$found -V)" = "$$($(PYTHON) -V)" ]; then echo "$$python is what make test runs on"; \
	  else $(MAKE) PYTHON=$$found VENV=build/$$python test-python || exit 1; fi; \
	done

test-python: needs-rabbitmq
	$(PYTEST_MANY) tests/faults/test_real_training.py tests/faults/test_undisturbed.py tests/unit \
	  --ignore tests/unit/test_house.py --ignore tests/unit/test_deploy.py

sbom: install  ## build/sbom.json: what Warren runs on, in CycloneDX
	mkdir -p build
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	  --output-file build/sbom.json requirements-runtime.lock

clean:  ## remove what was built; data, runs and brokers stay
	rm -rf $(VENV) build build.lock *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
