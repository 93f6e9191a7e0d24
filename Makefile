# make install | cluster | demo | test | test-slow | test-interop | lint | bench
# Needs Python 3.11 with pip and venv, nothing else: poetry comes into a private environment (.poetry/).

PYTHON ?= python3
POETRY := .poetry/bin/poetry
# Poetry's own client wants an index with the JSON interface; through the mirror plugin it takes the one pip uses.
PIP_INDEX = $(shell echo "$$PIP_INDEX_URL" | grep . || $(PYTHON) -m pip config get install.index-url 2>/dev/null \
	|| $(PYTHON) -m pip config get global.index-url 2>/dev/null \
	|| $(PYTHON) -c "from pip._internal.models.index import PyPI; print(PyPI.simple_url)")

.PHONY: install cluster demo test test-slow test-interop lint bench
.DEFAULT_GOAL := install

install: .venv/.installed

$(POETRY):
	@$(PYTHON) -c "import sys; sys.exit((3, 11) > sys.version_info[:2] and 'Python 3.11 or later is needed: make PYTHON=...')"
	$(PYTHON) -m venv .poetry
	.poetry/bin/python -m pip install --quiet "poetry>=2.1,<3" poetry-plugin-pypi-mirror

# Remade only when the lock or the project file has changed.
.venv/.installed: poetry.lock pyproject.toml | $(POETRY)
	env -u VIRTUAL_ENV -u CONDA_PREFIX -u CONDA_DEFAULT_ENV \
		POETRY_PYPI_MIRROR_URL="$(PIP_INDEX)" $(POETRY) install --no-interaction
	touch $@

# What a Determined container needs; see startup-hook.sh.
cluster: $(POETRY)
	env -u VIRTUAL_ENV -u CONDA_PREFIX -u CONDA_DEFAULT_ENV \
		POETRY_PYPI_MIRROR_URL="$(PIP_INDEX)" $(POETRY) install --no-interaction --only main,cluster

demo: install
	.venv/bin/python eval/demo.py

test: install
	.venv/bin/python -m pytest -n auto

# With `transformers serve`, which plays the judge.
test-slow: install
	env -u VIRTUAL_ENV -u CONDA_PREFIX -u CONDA_DEFAULT_ENV \
		POETRY_PYPI_MIRROR_URL="$(PIP_INDEX)" $(POETRY) install --no-interaction --with serving
	.venv/bin/python -m pytest -m slow

# Against the libraries whose formats are read and written, and on Determined; brings the optional groups.
test-interop: install
	env -u VIRTUAL_ENV -u CONDA_PREFIX -u CONDA_DEFAULT_ENV \
		POETRY_PYPI_MIRROR_URL="$(PIP_INDEX)" $(POETRY) install --no-interaction --with interop,cluster
	.venv/bin/python -m pytest -m interop

lint: install
	$(POETRY) check --lock
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: install
	.venv/bin/python benchmarks/demo_cost.py
	.venv/bin/python benchmarks/caching.py
	.venv/bin/python benchmarks/training.py
	.venv/bin/python benchmarks/fms.py
	.venv/bin/python benchmarks/steering.py
	.venv/bin/python benchmarks/guided_vs_vanilla.py PII_synth
