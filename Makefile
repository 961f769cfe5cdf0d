# L1 on Linux and macOS (GNU make 3.81 or newer). README.md has the same steps for Windows and conda.
# Settings, as in `make test TORCH=2.11.0`:
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
# Where pip looks for torch, for a build that is not the default one: README.md, "Linux without a GPU".
TORCH_INDEX ?=
WORKSPACE ?= workspace
BENCH_OPTIONS ?=

BIN := $(VENV)/bin
# A stamp says what stands in the environment. While it is newer than pyproject.toml, pip is not called at all.
READY := $(VENV)/.ready-torch-$(TORCH)
BENCH_READY := $(VENV)/.ready-bench
JOURNEY_READY := $(VENV)/.ready-journey
SCREENSHOTS ?=

# The tests use one thread each, so that two run beside each other. A notebook stays with one process.

# $(call step,what and how long,command): announce, run, say how long it took.
step = @echo "== $(1)"; start=$$(date +%s); $(2) && echo "   done in $$(( $$(date +%s) - start )) s"

.PHONY: help environment learn test lint pytest nbval notebooks check-notebooks data bench journey clean

help:
	@echo "make environment  the environment alone, as teachers need it"
	@echo "make learn      the environment (first time: minutes), your workspace, and JupyterLab on the first notebook"
	@echo "make test       ruff, pytest, and every notebook run again and compared (about ten minutes)"
	@echo "make notebooks  build the notebooks from notebooks/src (about a minute)"
	@echo "make data       rebuild the corpus, its tokenizer and the trained model from nothing (about 10 minutes)"
	@echo "make bench      speed beside transformers and litgpt (about 25 minutes; BENCH_OPTIONS=--quick for 8)"
	@echo "make journey    the learner's journey in a real JupyterLab (minutes; needs a Chromium; SCREENSHOTS=FOLDER keeps pictures)"
	@echo "make clean      remove caches and builds; the environment, your workspace and your runs stay"

environment: $(READY)

$(READY): pyproject.toml
	@echo "== environment in $(VENV): torch $(TORCH) and the course's packages (a few minutes; a second time, nothing)"
	@command -v $(PYTHON) >/dev/null || { echo "L1 needs Python 3.11 to 3.13, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "L1 needs Python 3.11 to 3.13, got $$($(PYTHON) --version 2>&1)."; \
	  echo "Another one can be named: make $(firstword $(MAKECMDGOALS) learn) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot make environments: its venv module is missing."; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.ready-*
	@# torch first and pinned: pyproject.toml allows a range, and pip left alone takes the newest, whatever its size.
	@$(BIN)/python -m pip install --disable-pip-version-check torch==$(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@echo "   torch is there; now the course's packages (a minute or two, without a word)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

learn: $(READY)
	@echo "== your workspace in $(WORKSPACE)/, then JupyterLab on the first notebook (seconds; Ctrl-C ends it)"
	@$(BIN)/l1 learn $(WORKSPACE)

test: lint pytest nbval

lint: $(READY)
	$(call step,ruff: style and formatting (a second),$(BIN)/ruff check . && $(BIN)/ruff format --check .)

pytest: $(READY)
	$(call step,pytest: the tests (about ten minutes),$(BIN)/python -m pytest --quiet -rs --numprocesses=2 --dist=worksteal)

nbval: $(READY)
	$(call step,nbval: every notebook run again and its outputs compared (a minute),OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses=2 --dist=loadfile --nbval --nbval-current-env notebooks)

notebooks: $(READY)
	$(call step,notebooks: built from notebooks/src and executed (about a minute),$(BIN)/python -m l1_ref.course.build)

check-notebooks: $(READY)
	$(call step,check-notebooks: the built notebooks match notebooks/src (seconds),$(BIN)/python -m l1_ref.course.build --check)

data: $(READY)
	$(call step,data: corpus and tokenizer and trained model from nothing (about 10 minutes),$(BIN)/l1 data)

$(BENCH_READY): $(READY)
	@echo "== the benchmark's packages, litgpt and transformers (a minute; a second time, nothing)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,test]'
	@touch $@

$(JOURNEY_READY): $(READY)
	@echo "== the journey's package, playwright (a minute; a second time, nothing)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[journey,test]'
	@touch $@

journey: $(JOURNEY_READY)
	$(call step,journey: a real JupyterLab in Chromium (minutes),$(BIN)/python -m pytest --quiet --numprocesses=2 --need-browser tests/journey $(if $(SCREENSHOTS),--screenshots=$(SCREENSHOTS)))

bench: $(BENCH_READY)
	$(call step,bench: L1 beside transformers and litgpt (about 25 minutes; BENCH_OPTIONS=--quick for 8),$(BIN)/python -m tests.bench $(BENCH_OPTIONS))
	$(call step,bench: how long each check takes (a minute),$(BIN)/python -m tests.bench_checks)

clean:
	@echo "== removing caches and builds (a second); the environment goes with: rm -rf $(VENV)"
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find l1_ref tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
