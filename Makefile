# The two commands that do everything: `make demo` and `make test`; `make test-fast` while you write.

VENV := .venv
PYTHON := $(VENV)/bin/python

# Installed by pip the tool has its bytecode. Here it would be compiled at every start, which is
# neither what the tests mean nor what the bench is to measure.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo lint test test-fast torture load fleet fleet-real bench bench-growth pictures man tools clean

demo: $(VENV)/demo  ## the main job in a sandbox: Python and git are enough
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ./demo

lint: $(VENV)/test  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint tools  ## everything: style, types, and all tests on the real programs
	$(VENV)/bin/pytest -n 6 --dist worksteal

test-fast: $(VENV)/test  ## what takes no instances: under a minute, without root, JVM or nginx
	$(VENV)/bin/pytest -n auto --dist worksteal -m 'not slow'

# With MANAGER=systemd these two run as root in a machine of their own, whose process 1 is systemd.
MANAGER :=
ON_IT := $(if $(filter systemd,$(MANAGER)),systemd_machine)

# The tool hit by signals at random instants, N times; SEED repeats what a failure names. It takes
# the ports of a tenth worker, so that the tests can run beside it. ONLY_WHILE_DEPLOYING=1: on hosts whose
# backup has that setting; GUARDED=1: where tags are signed, builds isolated and data migrated.
N := 300
SEED :=
ONLY_WHILE_DEPLOYING :=
GUARDED :=
torture: $(VENV)/test tools
	PYTEST_XDIST_WORKER=gw9 PYTHONPATH=tests $(PYTHON) -m $(ON_IT) torture $(N) --seed "$(SEED)" \
		$(if $(ONLY_WHILE_DEPLOYING),--only-while-deploying) $(if $(GUARDED),--guarded)

# Load on the site while it is deployed to, ROUNDS times, and the account of what was lost.
ROUNDS := 10
load: $(VENV)/test tools
	PYTHONPATH=tests $(PYTHON) -m $(ON_IT) load --rounds $(ROUNDS)

# A release to so many light hosts by the collection's playbooks, with what it takes.
HOSTS := 40
fleet: $(VENV)/test
	PYTEST_XDIST_WORKER=gw9 PYTHONPATH=tests $(PYTHON) -m fleet_scale $(HOSTS)

# With JSON=FILE both write every figure there, too.
JSON :=
bench: $(VENV)/test tools  ## what the tool costs, next to a plain script and others, in one run
	$(PYTHON) bench/speed.py $(if $(JSON),--json "$(JSON)")

bench-growth: $(VENV)/test tools  ## what is large next to the same thing small, and the tool's memory
	$(PYTHON) bench/growth.py $(if $(JSON),--json "$(JSON)")

fleet-real: N := 8
fleet-real: $(VENV)/test tools  ## what a release to N real hosts takes, against a plain playbook; as root
	$(PYTHON) bench/fleet.py $(N)

pictures: $(VENV)/test tools  ## what the README shows: real output, exported by rich
	PYTEST_XDIST_WORKER=gw9 PYTHONPATH=tests $(PYTHON) -m pictures

man: $(VENV)/test  ## the man pages, from the help of the commands
	PYTHONPATH=tests $(PYTHON) -m man_pages

# What the tests run and a bare machine lacks. Without root it says what is missing; the tests that
# need it are then skipped with the reason.
tools:
	@tests/install-tools

$(VENV)/demo: EXTRA = sandbox
$(VENV)/test: EXTRA = test
$(VENV)/demo $(VENV)/test: pyproject.toml
	@tests/install-tools python
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	touch $@

clean:
	test ! -e sandbox || $(VENV)/bin/deploy-clojars sandbox sandbox --stop
	rm -rf sandbox $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +
