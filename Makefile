# Needs Python >= 3.11 with venv, and make; no compiler, no MPI, no GPU.
PYTHON ?= python3
BIN := .venv/bin
comma := ,
# With GPU_CI=yes the environment has NVIDIA's libraries as well.
DEVELOPMENT := .venv/installed-dev$(if $(GPU_CI),-gpu-ci)
# The number of processes that run tests. Tests that share ranks or files run in the same process.
WORKERS ?= 2
SPHINX := $(BIN)/python -m sphinx -q -W --keep-going
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: help train test test-long test-all test-slurm test-gpu card-check soak lint docs docs-links bench \
	bench-kernels bench-peers bench-gpu bench-gpu-launches dist clean slurm-programs

help:
	@echo "make train   prepare the default corpus and train a small BERT on 2 ranks (minutes)"
	@echo "make test    run the tests that a change can break, on one rank and on several, in WORKERS=2 processes."
	@echo "             GPU_CI=yes installs NVIDIA's libraries for tests that need these, but no GPU"
	@echo "make test-long     run the long tests: faults, restarts, all combinations, planted faults, SLURM"
	@echo "make test-all      run both"
	@echo "make test-slurm    run jobs on a SLURM that the tests start; needs Debian's slurm-wlm and munge"
	@echo "make test-gpu   run the tests that need a GPU: kernels, runs, NCCL, compute-sanitizer (minutes)."
	@echo "             CUDA=cuda12 is for drivers without CUDA 13"
	@echo "make card-check"
	@echo "             check in 9 minutes whether this machine's GPU gives right results at full speed"
	@echo "make soak    kill a run a hundred times; SEED=7 draws other ranks and moments"
	@echo "make lint    check style and types"
	@echo "make docs    build the documentation as a site: docs/_build/html/index.html"
	@echo "make docs-links"
	@echo "             check the links of the documentation that lead to other sites; needs the network"
	@echo "make bench   show where the time of a training step of BERT-base goes"
	@echo "make bench-kernels"
	@echo "             time each compiled kernel, and NumPy and PyTorch (if installed) for comparison"
	@echo "make bench-peers"
	@echo "             time a step of BERT-base in lucid, PyTorch and JAX, in an environment of their own"
	@echo "make bench-gpu-launches"
	@echo "             list the GPU launches of a step and their least time; needs g++, but no GPU"
	@echo "make bench-gpu"
	@echo "             time a step of BERT on a GPU in lucid and PyTorch (of the environment TORCH=.../python)"
	@echo "make dist    build the wheel and the source distribution into dist/"
	@echo "make clean   remove .venv and .venv-peers (data/ and runs/ stay)"

train: .venv/installed
	$(BIN)/lucid prepare python-docs --output data/python-docs --vocab-size 4096
	PYTHON=$(BIN)/python launch/mpirun.sh -n 2 configs/small_cpu.yaml

test: $(DEVELOPMENT)
	$(PYTEST)

test-long: $(DEVELOPMENT) slurm-programs
	$(PYTEST) -m 'long or slurm' --durations=20

test-all: test test-long

test-slurm: $(DEVELOPMENT) slurm-programs
	$(BIN)/python -m pytest -m slurm tests/slurm

slurm-programs:
	@for program in munged slurmctld slurmd sbatch setpriv; do \
		PATH=$$PATH:/usr/sbin command -v $$program >/dev/null || { \
			echo "make: $$program is missing; on Debian: apt-get install slurm-wlm munge" >&2; exit 1; }; \
	done

test-gpu: .venv/installed-gpu
	$(BIN)/python -m pytest -rs --durations=5 tests/gpu -k card

card-check: .venv/installed-gpu
	$(BIN)/python benchmarks/card_check.py

soak: $(DEVELOPMENT)
	$(BIN)/python -m pytest -m long tests/faults/test_kills.py --kills 100 --kill-seed $(or $(SEED),1)

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/python docs/generate.py
	$(SPHINX) -E -b html docs docs/_build/html

docs-links: .venv/installed-docs
	$(SPHINX) -b linkcheck docs docs/_build/links

bench: .venv/installed
	$(BIN)/lucid bench step

bench-kernels: .venv/installed
	$(BIN)/python benchmarks/kernels.py

bench-peers: .venv-peers/installed
	.venv-peers/bin/python benchmarks/peers/run.py

bench-gpu-launches: GPU_CI = yes
bench-gpu-launches: .venv/installed-dev-gpu-ci
	$(BIN)/python benchmarks/gpu_launches.py

bench-gpu: .venv/installed-gpu
	$(BIN)/python benchmarks/gpu_step.py --torch-python $(or $(TORCH),$(BIN)/python)

dist: $(DEVELOPMENT)
	$(BIN)/python -m hatchling build --clean

clean:
	rm -rf .venv .venv-peers

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mpich,plot]'
	touch $@

.venv/installed-dev .venv/installed-dev-gpu-ci: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[mpich,plot,tensorboard,dev$(if $(GPU_CI),$(comma)gpu-ci)]'
	touch $@ .venv/installed-dev .venv/installed

.venv/installed-docs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mpich,docs]'
	touch $@

.venv/installed-gpu: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mpich,plot,dev,$(or $(CUDA),cuda13)]'
	touch $@

.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[mpich,peers]' || { \
		echo "If torch was not found: PyTorch keeps its CPU builds in an index of its own;" \
			"set PIP_EXTRA_INDEX_URL to that index's address" >&2; \
		exit 1; }
	touch $@
