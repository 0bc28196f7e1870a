# make help lists the targets. The first one used builds .venv; afterwards that costs nothing.
# Another environment (conda, a cluster's): make TARGET PYTHON=python builds no .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PROFILE ?= demo
ONLY ?=
CORES ?= 2
NPROC ?= 1
GPUS ?= $(words $(wildcard /dev/nvidia[0-9]*))
BASE_PYTHON ?= python3
VENV := .venv
PYTHON ?= $(VENV)/bin/python
STAMP := $(VENV)/.installed
ENVIRONMENT := $(if $(filter $(VENV)/%,$(PYTHON)),$(STAMP))
SOURCES := gsdd_lib cuda_ext tests tests_browser notebooks
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
REPORT = figures/$(PROFILE)/99_report

# Freed memory stays with the process (as in the runner): the system would clear every page anew.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000

INDEX := $(wildcard notebooks/index.ipynb)
RUNNER = $(PYTHON) -m gsdd_lib.experiment.runner

.PHONY: help reproduce test test-browser lab data bench gpu-check clean clean-runs compiler

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

reproduce: $(ENVIRONMENT) compiler ## Every figure and table of PROFILE=demo (ONLY=04 or table_15 or ipc1; NPROC=2 processes each); goes on where it was stopped
	@$(RUNNER) --check-all params/$(PROFILE) --only '$(ONLY)'
	@names=$$($(RUNNER) --data-sets params/$(PROFILE) --only '$(ONLY)'); \
	  for name in $$names; do $(PYTHON) -m gsdd_lib.data "$$name" --fetch || exit 1; done
	@ONLY='$(ONLY)' $(PYTHON) -m snakemake --cores $(CORES) --resources gpu=$(GPUS) --nolock \
	  --rerun-incomplete --quiet all \
	  --config profile=$(PROFILE) nproc=$(NPROC) gpus=$(if $(filter-out 0,$(GPUS)),$(NPROC),0)
	@printf '\nFigures and tables: figures/%s/\n' $(PROFILE)
	@for table in $(REPORT)/*/*.md; do \
	  if [ -f "$$table" ]; then printf '\n%s\n\n' "$$table"; cat "$$table"; fi; done

test: $(ENVIRONMENT) compiler ## Lint, unit tests, and every notebook with its smoke parameters
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m ruff format --check $(SOURCES)
	$(PYTHON) -m pytest
ifneq ($(NOTEBOOKS),)
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(CORES) --dist loadfile --nbval-lax \
	  --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/nbval_sanitize.cfg $(NOTEBOOKS)
else
	@echo "notebooks/ holds no notebook: nothing for nbval to run."
endif

test-browser: $(ENVIRONMENT) compiler ## The notebooks as a reader uses them: JupyterLab in a headless Chromium (8 minutes)
	@$(PYTHON) -c 'import selenium' 2>/dev/null \
	  || $(PYTHON) -m pip install -q -e ".[notebooks,dev,browser]" -c constraints.txt
	$(PYTHON) -m pytest tests_browser

lab: $(ENVIRONMENT) compiler ## Open the notebooks in JupyterLab (over SSH: ARGS="--no-browser --ip=127.0.0.1" and ssh -L 8888:localhost:8888)
	@echo "Building the splatting operator (a minute the first time, nothing afterwards) ..."
	@$(PYTHON) -c 'from gsdd_lib.splatting.splat import backend_ready as ready; \
	  print("ready" if ready() else "not built: the slow reference renderer serves instead")'
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTHON) -m jupyterlab \
	  --LabApp.default_url=/lab/tree/notebooks$(INDEX:notebooks%=%) \
	  $$(test "$$(id -u)" != 0 || echo --allow-root) $(ARGS)

html: $(ENVIRONMENT) ## The notebooks as they were last saved, as a static site in site/; needs no network to read
	@$(PYTHON) docs/site.py site && echo "Open site/index.html"

data: $(ENVIRONMENT) ## Find Fashion-MNIST on this machine, or fetch it (30 MB) and verify it
	@$(PYTHON) -m gsdd_lib.data fashion_mnist --fetch

bench: $(ENVIRONMENT) compiler ## Time the splatting operator against the dense reference
	@$(PYTHON) -m gsdd_lib.benchmarks.operator

gpu-check: $(ENVIRONMENT) ## All that needs a GPU, in ten minutes (PYTHON=python3: its own torch; no .git: GSDD_COMMIT)
	@$(PYTHON) -c 'import importlib.util as i, sys; i.find_spec("torch") or sys.exit( \
	  "$(PYTHON) has no torch: name a Python that has, make gpu-check PYTHON=...")'
	@$(PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit( \
	  "No GPU: torch %s sees no CUDA device, so there is nothing to check." % torch.__version__)'
	@$(PYTHON) -m gsdd_lib.benchmarks.gpu_check

clean: ## Remove .venv and caches; runs/ with its checkpoints, figures/ and data/ stay
	rm -rf $(VENV) .snakemake .pytest_cache .ruff_cache .hypothesis *.egg-info
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

clean-runs: ## List what runs/ holds, checkpoints and experts; with CONFIRM=yes remove it
	@if [ ! -d runs ]; then echo "runs/ is not there: nothing to remove."; \
	elif [ "$(CONFIRM)" = yes ]; then rm -rf runs && echo "runs/ is removed."; \
	else du -sh runs/*/*/* 2>/dev/null || true; du -sh runs; \
	  echo "Nothing was removed. To remove all of it: make clean-runs CONFIRM=yes"; fi

compiler:
	@command -v g++ >/dev/null || command -v clang++ >/dev/null || echo "No C++ compiler found:" \
	  "the slow reference renderer serves instead; install g++ (Debian: apt-get install g++)."

$(STAMP): pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "Python 3.11 or newer is needed and $(BASE_PYTHON) is %s: make BASE_PYTHON=python3.12 ..." \
	  % sys.version.split()[0])'
	@echo "Installing into $(VENV) (a few minutes; everything pip says is in $(VENV)/install.log)"
	@test -x $(VENV)/bin/python || $(BASE_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --progress-bar off -e ".[notebooks,dev]" -c constraints.txt \
	  2>&1 | tee $(VENV)/install.log \
	  | awk '/ [MG]B\)/ {for (i = 2; i < NF; i++) if (split($$i, name, "-") > 2) \
	      print "  " name[1], name[2], $$(i + 1), $$(i + 2)} \
	    /^Installing coll/ {print "  unpacking"} {fflush()}' \
	  || { grep -A 9 ERROR $(VENV)/install.log || tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $(STAMP)
