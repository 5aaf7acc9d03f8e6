# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false
# Twice quiet: pip says what went wrong and nothing else.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
# What pip does one file after the other, on all cores; and our own modules, which no pip compiles where they lie.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') src
# A check that says nothing unless it fails.
define silently
@said=$$($(1) 2>&1) || { printf '%s\n' "$$said"; exit 1; }
endef

.PHONY: install demo test gpu test-image test-consumers golden check check-types check-rest audit mutants fuzz soak bench docs site lock clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tunesmith needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes)"
	@$(PIP) --no-compile $(shell grep '^torch==' constraints.txt)
	@$(PIP) --no-compile --constraint constraints.txt --editable '.[test]'
	@$(COMPILE) || true # some packages hold files that are templates
	@touch $(INSTALLED)

demo: install
	@$(BIN)/python scripts/demo.py

test: check
	@$(BIN)/python scripts/run_tests.py

# What needs a CUDA device, compared with the cpu; without one it says so and runs nothing.
gpu: install
	@$(BIN)/python scripts/gpu_tests.py

# Writes tests/golden anew; the commit that carries the new numbers says why they changed.
golden: install
	@UPDATE_GOLDEN=1 $(BIN)/python scripts/run_tests.py tests/golden

# Builds the container image with podman and trains in it: ten minutes, and a few gigabytes of disk.
test-image: install
	@$(BIN)/python -m pytest -q -m image tests/image

# Opens saved folders in transformers 4.57 and its PEFT, in an environment of their own, which takes torch and all else
# that they need from this one. Needs a package registry.
CONSUMERS := $(VENV)/consumers
test-consumers: install
	@test -x $(CONSUMERS)/bin/python || $(BIN)/python -m venv --without-pip $(CONSUMERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(CONSUMERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth
	@$(BIN)/python -m pip --python $(CONSUMERS)/bin/python install --quiet --disable-pip-version-check --no-deps \
		'transformers>=4.57,<4.58' 'tokenizers>=0.22,<0.23' 'huggingface-hub>=0.36,<1' 'peft>=0.18,<0.19'
	@$(BIN)/python -m pytest -q -m consumers tests/consumers

# mypy beside the short ones: together they take as long as mypy alone where there are two cores.
check: install
	@$(MAKE) --no-print-directory --jobs 2 check-types check-rest

check-types: install
	$(call silently,$(BIN)/mypy)

check-rest: install
	$(call silently,$(BIN)/ruff check)
	$(call silently,$(BIN)/ruff format --check)
	$(call silently,$(BIN)/lint-imports --no-logo)
	$(call silently,$(BIN)/deptry src)

# Known holes in the versions of constraints.txt, from PyPI's database: needs the network, so it is no part of `check`.
# A package that could not be asked about fails as well (--strict). The tool has an environment of its own.
audit: install
	@test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'; }
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

# Changes the modules that decide what is learnt, one thing at a time, and asks their tests; hours. MODULES="data/masking"
mutants: install
	@$(BIN)/python scripts/mutants.py $(MODULES)

# An hour of random files, rows, settings and answers (FUZZ_EXAMPLES a test): whatever is not an error of ours is a finding.
# With FUZZ_LOG=FILE it may be ended at any time and the next call goes on with the hour.
fuzz: install
	@$(BIN)/python scripts/fuzz.py

# Kills runs of every kind at random times, 50 in all, and compares what is left to the bit. SOAK_HOURS=2 fills two hours;
# with SOAK_LOG=FILE they may be ended at any time and the next call goes on with them.
soak: install
	@$(BIN)/python scripts/soak.py

bench: install
	@$(BIN)/python -m benchmarks

# The pages that are made (settings, commands, rows, exit codes, memory) and the site in site/, which needs no network to be
# read. What builds it is the extra `docs`, in an environment of its own.
docs: install
	@$(BIN)/python scripts/make_reference.py
	@$(BIN)/python -W ignore scripts/make_memory_table.py
	@$(MAKE) --no-print-directory site

site: install
	@test -x $(VENV)/docs/bin/mkdocs || { $(BIN)/python -m venv $(VENV)/docs && \
		$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' | \
		$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement /dev/stdin; }
	$(call silently,NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict) # its --quiet drops what --strict counts
	@$(BIN)/python scripts/check_site.py site
	@echo "site/index.html"

lock: install
	@$(BIN)/python scripts/make_constraints.py > constraints.txt

clean:
	rm -rf $(VENV) build dist demo outputs site
