# `make demo` and `make test` make the virtual environment that they need, .venv, and renew it when pyproject.toml,
# constraints.txt or locked/ change. pip's own settings apply, such as PIP_FIND_LINKS with a CPU build of torch.

# The first one that fits is used. To choose another one: make PYTHON=/path/to/python3.12 demo
PYTHON ?= python3 python3.13 python3.12 python3.11
PIP := .venv/bin/python -m pip install --disable-pip-version-check
# All but torch is checked by its hash. What is then left to install is torch, whose build differs between machines, and
# what only that build pulls in.
PIP_LOCKED := $(PIP) --require-hashes --no-deps --requirement
PIP_REST := $(PIP) --no-build-isolation --constraint constraints.txt
# One worker for each core, with one torch thread each.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test soak format docs licenses constraints clean

demo: .venv/core
	.venv/bin/metalstm demo

test: .venv/dev
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/pytest $(PYTEST_ARGS)

# Hostile cases, kills and clients at length: about an hour on 2 cores.
# Shorter: make soak SOAK_ARGS="--cases 2000 --kills 5 --clients 10 --minutes 1"
soak: .venv/dev
	PYTHONPATH=tests .venv/bin/python -m hostile.soak $(SOAK_ARGS)

format: .venv/dev
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

docs: .venv/dev
	.venv/bin/python -m sphinx -W --keep-going -q -c docs . build/site
	@echo build/site/index.html

# Each dependency with its version and license.
licenses: .venv/dev
	@.venv/bin/python tools/dependencies.py licenses

.venv/core: pyproject.toml constraints.txt locked/core.txt
	$(call make-venv,.venv)
	$(PIP_LOCKED) locked/core.txt
	$(PIP_REST) --editable .
	@touch $@

.venv/dev: .venv/core locked/extras.txt
	$(PIP_LOCKED) locked/extras.txt
	$(PIP_REST) --editable '.[dev]'
	-.venv/bin/python -c "import sys; from pathlib import Path; from metalstm.classifier import runtime; \
		runtime.download(Path(sys.prefix) / runtime.NAME)"  # which the page of an exported classifier contains
	@touch $@

# Write the newest versions that go together, of all extras, and their hashes.
constraints:
	$(call make-venv,.venv-constraints)
	.venv-constraints/bin/python -m pip install packaging uv
	PATH=.venv-constraints/bin:$$PATH .venv-constraints/bin/python tools/dependencies.py lock
	rm -r .venv-constraints

clean:
	rm -rf .venv .venv-constraints build

# $(call make-venv,FOLDER) uses the first of $(PYTHON) that has a supported version and can make one.
define make-venv
@for python in $(PYTHON); do \
	version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo missing); \
	case $$version in 3.11|3.12|3.13) \
		if $$python -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$$python -m venv --clear $(1)  # Python $$version"; exec $$python -m venv --clear $(1); \
		fi; \
		version="$$version without venv";; \
	esac; \
	tried="$$tried$${tried:+, }$$python: $$version"; \
done; \
echo "metalstm needs Python 3.11 to 3.13 with venv, but found $$tried:" \
	"install one (Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
exit 2
endef
