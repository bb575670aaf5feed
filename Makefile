# `make demo` and `make test` set themselves up: python3 >= 3.11, pip and make are all they need.
PYTHON ?= python3
BENCH ?= $(or $(ASTROGEN_SHARED),../shared)/bench/bench_bright_dev.npz
CASE ?= lsst
SNR ?= 50

READY = .venv/ready
VENV = .venv/bin/python

.PHONY: setup demo test slow fuzz lint format compat benchmark clean

setup: $(READY)

# A Python packaged without ensurepip cannot put pip into the environment: its own pip then installs from outside.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("make: $(PYTHON) must be Python 3.11, 3.12 or 3.13, got " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv || $(PYTHON) -m venv --clear --without-pip .venv
	if $(VENV) -m pip --version >/dev/null 2>&1; then pip="$(VENV) -m pip"; else pip="$(PYTHON) -m pip --python $(VENV)"; fi; \
	$$pip install -c constraints.txt -e '.[tests,lint,compat,simulations,dask]'
	touch $(READY)

demo: $(READY)
	.venv/bin/astrogen demo --out demo_output

test: $(READY)
	$(VENV) -m pytest -m "not slow"

fuzz: $(READY)
	$(VENV) -m pytest -m slow tests/test_fuzz.py

slow: $(READY)
	$(VENV) -m pytest -m slow

lint: $(READY)
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

format: $(READY)
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

# The oldest and the newest that setup.cfg allows; OLDEST and NEWEST may name the Pythons.
compat: $(READY)
	.ci/compat

benchmark: $(READY)
	mkdir -p benchmark_output
	$(VENV) -m benchmarks.deconvolution --bench $(BENCH) --case $(CASE) --snr $(SNR) --draws 200 --out benchmark_output/recon.npz --score

clean:
	rm -rf .venv demo_output benchmark_output build *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
