# make study   everything a newcomer needs: environment, the RQ1 study on embedded data, its table
# make report  docs/results/report.html, the page of the published studies, from their tables: half a minute, without torch, Ray or MLflow
# make test    the default tests (9 minutes on 2 cores with AVX-512)
# make slow-test   studies killed, stopped and continued; the paper's networks; compiled cells
# make gpu-test   what only a GPU can show, and what each way of computing takes there
# make lint    style, types and import layers

VENV := .venv
PYTHON ?= python3
RESULTS ?= results
INSTALLED := $(VENV)/.installed
# Two processes, each with whole files: what a file's tests share is made once. One thread each: two on each of two cores wait
# for each other, tens of times longer than they compute when the machine is busy.
TWO := --numprocesses 2 --dist loadfile
test slow-test: export OMP_NUM_THREADS = 1

.PHONY: study report test lint slow-test gpu-test clean

study: $(INSTALLED)
	$(VENV)/bin/python studies/depth_gap.py --variants progressive,shallow,random --seeds 8 --results $(RESULTS)

report: $(INSTALLED)
	$(VENV)/bin/python analysis/report.py --results docs/results

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(TWO)

slow-test: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(TWO) -m "slow and not gpu"

gpu-test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m gpu

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The lock pins what was tested; a newer release of a dependency cannot break a fresh clone. The C kernels are compiled, by a compiler
# that pip installs where the machine has none.
$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdarts_tune needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(VENV)/bin/python -c 'import sys; from pdarts_tune.networks.kernels.build import missing; sys.exit(missing())' || \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check ziglang
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
