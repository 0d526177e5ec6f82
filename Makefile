# demo: the default run; test, lint: what CI runs; bench: benchmarks/RESULTS.md, best on an idle machine; soak: kills
# and resumes. Each makes the environment that it needs.
PYTHON ?= python3
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1
PYTEST_ARGS ?= -n auto --dist worksteal

.PHONY: demo test lint bench soak clean

demo: .venv/.installed
	.venv/bin/fmstune

test: .venv-test/.installed
	.venv-test/bin/python -m pytest $(PYTEST_ARGS)

lint: .venv-test/.installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports

bench: .venv-test/.installed
	.venv-test/bin/python benchmarks/run_all.py $(BENCH_ARGS)

# kills runs at random moments and goes on, 20 times a combination; takes machines away
soak: .venv-test/.installed
	.venv-test/bin/python -m pytest -m soak
	.venv-test/bin/python tools/soak.py --kills 20

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt torch
	.venv/bin/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv-test/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-test/bin/python -m pip install --quiet -c constraints.txt -e ".[dev,aim,eval,mlflow,tensorboard,trackio,wandb]"
	touch $@

clean:
	rm -rf .venv .venv-test build dist src/*.egg-info
