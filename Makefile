# make run      install what serving needs, and serve. MODEL=canary-180m-flash HOST=0.0.0.0 PORT=9000 change what it serves
#               and where; without them, CANARY_MODEL, CANARY_HOST and CANARY_PORT (environment or .env) or the defaults do.
# make install  install everything: also what the tests need and, on x86-64 Linux, 8-bit products
# make quick    run the unit tests, which start no other processes, in less than a minute
# make test     run every test
# make lint     check style, formatting, types and the Dockerfile
# make audit    ask PyPI for known vulnerabilities of every version in constraints.txt
#
# Exact versions of all packages are in constraints.txt; make constraints renews it.
#
# PYTHON=python3.12 names the Python to use. On Linux, EXTRAS=cuda12 (or cuda13) installs MLX for a GPU instead of the CPU.

PYTHON ?= python3
EXTRAS ?= $(if $(filter Linux,$(shell uname -s)),cpu)
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
EXACT  := --constraint constraints.txt

# $(call given,PORT,--port): the option with its value, if the variable was given to make. What the environment has under
# such common names is not meant for us.
given = $(if $(filter command,$(origin $(1))),$(2) '$($(1))')

.PHONY: install run quick test lint constraints audit

install: $(VENV)/.dev

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "canary-server needs Python 3.11 or later; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "== Creating $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@echo "== Installing canary-server and what it needs to run. This takes a minute; the last step prints nothing."
	@$(PIP) install $(EXACT) --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "== Installing what the tests need. This takes a minute or two; the last step prints nothing."
	@$(PIP) install $(EXACT) --group dev
	@touch $@

run: $(VENV)/.runtime
	$(VENV)/bin/canary serve $(call given,MODEL,--model) $(call given,HOST,--host) $(call given,PORT,--port)

# One process for each core, and one thread in each: the matrices are so small that sharing them costs more. Each process
# would import schemathesis, which only tests/api needs.
quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/unit -p no:schemathesis --hypothesis-profile quick --numprocesses auto

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/hadolint docker/Dockerfile

# For all platforms and Pythons at once. Without the label of a local build, such as torch's +cpu.
constraints: $(VENV)/.dev
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--all-extras --group dev --group bench --group audit pyproject.toml --output-file constraints.txt
	sed -i.bak 's/+[a-z0-9.]*//' constraints.txt && rm constraints.txt.bak

# When pip-audit cannot ask, only the last line that it prints tells why.
audit: $(VENV)/.dev
	$(PIP) install --quiet $(EXACT) --group audit
	@said=$$($(VENV)/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt 2>&1); failed=$$?; \
	case "$$failed $$said" in \
		"0 "*|*"Found "*" known vulnerabilit"*) echo "$$said" ;; \
		*) echo "$$said" | tail -n 1; \
		echo "make audit: nothing was audited. It needs a connection to PyPI itself; a mirror knows no vulnerabilities." ;; \
	esac; exit $$failed
