# make study | test | lab | publish. Each makes the environment first (.venv/), once; see `make help`.
#
#   PYTHON=python3.12            the Python to build .venv with, where there is no conda
#   PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                more for pip; this one gets the small CPU-only torch on Linux
#                                (with conda, set pip's own PIP_EXTRA_INDEX_URL instead)
#   STUDY=papers.yaml            which runs: study.yaml (minutes), or the papers' own corpora and models (hours)
#   PROFILE=profiles/slurm       where: on a Slurm cluster; profiles/generic for another queue
#   OWED=1                       of a study only the runs of which results/ has no row yet
#   WORKERS=2                    how many tests, or runs of the study on this machine, go on at a time

PYTHON    ?= python3
PIP_FLAGS ?=
STUDY     ?= study.yaml
PROFILE   ?=
OWED      ?=
WORKERS   ?= 2
CONDA     ?= $(or $(CONDA_EXE),$(shell command -v conda 2>/dev/null))

STAMP := .venv/.stamp
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Two processes whose idle threads spin slow each other 10 to 40 times on two cores.
export OMP_WAIT_POLICY := passive
# glibc hands every large buffer back to the kernel and takes it anew, page by page: a fifth of a training step.
export MALLOC_TRIM_THRESHOLD_ := 8000000000
export MALLOC_MMAP_THRESHOLD_ := 8000000000
# One thread where several processes share the cores.
study test: export OMP_NUM_THREADS := 1

.PHONY: help study test lab publish env lock clean

help:
	@echo "make study    run every notebook of the study, then print the comparison"
	@echo "make test     ruff, the unit tests, and every notebook against its stored outputs"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make publish  write figures/ and results/, with results/report.html, from the finished runs"
	@echo "make env      the environment alone (.venv/); every target above makes it when needed"
	@echo "make lock     requirements.lock anew, after a change of environment.yml"
	@echo "make clean    remove caches; runs/ and .venv/ stay"

# What is given reaches the shell as variables and is never read as part of a command.
study: export STUDY := $(STUDY)
study: export WORKERS := $(WORKERS)
study: export PROFILE := $(PROFILE)
study: $(STAMP)
	@python tools/study.py --study "$$STUDY" --workers "$$WORKERS" --profile "$$PROFILE" $(if $(OWED),--owed)

test: $(STAMP)
	ruff check
	ruff format --check
	pytest -n $(WORKERS) --dist loadfile tests
ifneq ($(NOTEBOOKS),)
	pytest -n $(WORKERS) --dist loadfile --nbval --nbval-current-env $(NOTEBOOKS)
else
	@echo "no notebooks to check in notebooks/"
endif

# On this machine alone (127.0.0.1), behind the token it prints. JupyterLab will not run as root, and says so in a traceback.
lab: $(STAMP)
	@if [ "$$(id -u)" = 0 ]; then \
	  echo "make lab: JupyterLab does not start as root, who may do anything on this machine, and so may whoever reaches it."; \
	  echo "          Start it as a user of your own: runuser -u NAME -- make lab"; \
	  echo "          Where there is none (a container): cd notebooks && ../.venv/bin/jupyter lab --ip=127.0.0.1 --allow-root"; \
	  exit 1; fi
	@mkdir -p notebooks && cd notebooks && jupyter lab --ip=127.0.0.1

publish: export STUDY := $(STUDY)
publish: $(STAMP)
	python -m sparsernn.report "$$STUDY"

env: $(STAMP)

# After a change of environment.yml, on the platform the lock file is for.
lock: $(STAMP)
	.venv/bin/python tools/lock.py write $(PIP_FLAGS)

# conda where there is one, else venv and pip; a .venv/ made one way is kept up the same way.
$(STAMP): environment.yml lib/pyproject.toml $(wildcard requirements.lock)
	@echo "environment: making .venv/ as environment.yml says: about 2.6 GB and 3 minutes with CPU-only torch,"; \
	echo "             several GB more where pip brings torch for CUDA (see PIP_FLAGS in Makefile)"
	@if [ -n "$(CONDA)" ] && [ ! -f .venv/pyvenv.cfg ]; then \
	  if [ -d .venv/conda-meta ]; then verb=update; prune=--prune; else verb=create; prune=; fi; \
	  echo "environment: by conda ($(CONDA)), env $$verb"; \
	  "$(CONDA)" env $$verb --prefix .venv --file environment.yml $$prune; \
	else \
	  "$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "environment: this needs Python 3.11 or newer, and %s is %d.%d; name another: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))' && \
	  echo "environment: by pip, with $$("$(PYTHON)" --version)" && \
	  { .venv/bin/python -m pip --version > /dev/null 2>&1 || "$(PYTHON)" -m venv .venv; } && \
	  .venv/bin/python -m pip install --quiet $(PIP_FLAGS) pyyaml packaging && \
	  if .venv/bin/python tools/lock.py fits $(PIP_FLAGS); then \
	    echo "environment: from requirements.lock, each file by its digest" && \
	    .venv/bin/python -m pip install --quiet $(PIP_FLAGS) --require-hashes -r requirements.lock && \
	    .venv/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -e ./lib; \
	  else \
	    echo "environment: from environment.yml" && \
	    .venv/bin/python tools/requirements.py environment.yml > .venv/requirements.txt && \
	    .venv/bin/python -m pip install --quiet $(PIP_FLAGS) -r .venv/requirements.txt; \
	  fi; \
	fi
	@.venv/bin/python -m pip check
	@touch $@
	@echo "environment: ready in .venv/"

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +
	@echo "kept: runs/ and .venv/ (remove them by hand: rm -rf runs .venv)"
