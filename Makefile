# demo: the default run; test, lint: what CI runs; test-fast: the tests that train nothing; site: the documents as HTML,
# in site/; bench: benchmarks/RESULTS.md, best on an idle machine; soak: kills and resumes. Each makes the environment
# that it needs. programs: what some tests drive besides (Debian, as root); without them these tests are skipped.
PYTHON ?= python3
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# containers set it; each of some hundred processes would then compile fmstune, and each worker the tests, anew
unexport PYTHONDONTWRITEBYTECODE
PYTEST_ARGS ?= -n auto --dist worksteal -rs

.PHONY: demo test test-fast lint site bench gpu-proof gpu-wheels soak newest oldest programs llama-cpp clean

demo: .venv/.installed
	.venv/bin/fmstune

test: .venv-test/.installed
	.venv-test/bin/python -m pytest $(PYTEST_ARGS)

test-fast: .venv-test/.installed
	.venv-test/bin/python -m pytest -m "not slow and not soak" $(PYTEST_ARGS)

lint: .venv-test/.installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports

# needs no network; the notice on Material's successor is not about this build
site: .venv-test/.installed
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/python -m mkdocs build --strict

bench: .venv-test/.installed
	.venv-test/bin/python benchmarks/run_all.py $(BENCH_ARGS)
	.venv-test/bin/python tools/make_docs.py

# the fast tests with the newest libraries of training that pyproject.toml admits; torch stays as it is pinned
newest: .venv-newest/.installed
	.venv-newest/bin/python tools/versions.py
	.venv-newest/bin/python -m pytest -m "not slow and not soak" $(PYTEST_ARGS)

# the same with the oldest, which is the floor of each in pyproject.toml
oldest: .venv-oldest/.installed
	.venv-oldest/bin/python tools/versions.py
	.venv-oldest/bin/python -m pytest -m "not slow and not soak" $(PYTEST_ARGS)

# what runs on a GPU, and how fast; --device cpu in GPU_ARGS tries it small. gpu-wheels: for a machine without a network,
# where tools/gpu_proof.sh installs them
gpu-proof: .venv-test/.installed
	.venv-test/bin/python benchmarks/gpu_proof.py $(GPU_ARGS)

gpu-wheels: .venv-test/.installed
	.venv-test/bin/python tools/gpu_wheels.py wheels

# kills runs at random moments and goes on, 20 times a combination; takes machines away
soak: .venv-test/.installed
	.venv-test/bin/python -m pytest -m soak
	.venv-test/bin/python tools/soak.py --kills 20

# builds llama.cpp for some minutes, so that tests compare GGUF files with it; without it they are skipped
llama-cpp: .venv-test/.installed
	.venv-test/bin/python -m pip install --quiet llama-cpp-python

programs:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge iproute2 chromium

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt torch
	.venv/bin/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv-test/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-test/bin/python -m pip install --quiet -c constraints.txt \
		-e ".[dev,docs,aim,chat,eval,fms,gguf,mlflow,serve,sweep,tensorboard,trackio,wandb]"
	touch $@

# made anew by `make clean newest`, when the registry has newer ones
.venv-newest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-newest/bin/python -m pip install --quiet -c constraints.txt \
		-e ".[dev,docs,aim,chat,eval,fms,gguf,mlflow,serve,sweep,tensorboard,trackio,wandb]"
	grep '^torch==' constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/python -m pip install --quiet --upgrade -c .venv-newest/torch.txt -e . \
		transformers accelerate peft datasets trl
	touch $@

.venv-oldest/.installed: pyproject.toml constraints.txt tools/versions.py
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tools/versions.py --floors > .venv-oldest/floors.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/floors.txt torch
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/floors.txt \
		-e ".[dev,docs,aim,chat,eval,fms,gguf,mlflow,serve,sweep,tensorboard,trackio,wandb]"
	touch $@

clean:
	rm -rf .venv .venv-test .venv-newest .venv-oldest build dist site src/*.egg-info
