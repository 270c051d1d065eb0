# make run    install and serve (MODEL=toy by default, e.g. MODEL=canary-180m-flash)
# make test   install and run every test

PYTHON ?= python3
MODEL  ?= toy
HOST   ?= 127.0.0.1
PORT   ?= 8000
VENV   := .venv

.PHONY: install run test lint

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "canary-server needs Python 3.11 or later; name one with: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(VENV)/bin/pip install --disable-pip-version-check --editable . --group dev
	touch $@

run: install
	$(VENV)/bin/canary serve --model $(MODEL) --host $(HOST) --port $(PORT)

test: install
	$(VENV)/bin/python -m pytest

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
