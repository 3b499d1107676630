# SPDX-License-Identifier: BSD-3-Clause
#
# The project's verbs. Each sets up what it needs.

KERNELS := 6.1 6.12
PYTHON := .venv/bin/python
STEP := $(PYTHON) tools/step.py
VM := $(PYTHON) -m vm
RESULTS := build/results
JOBS := $(shell nproc)
SHELL_SCRIPTS := .ci/run $(wildcard tools/*.sh vm/*.sh) vm/boot/udevadm

# Ordinary users leave out the few unit tests that only root can run.
MARKED := $(if $(filter 0,$(shell id -u)),,-m 'not root')

# make test-vm-6.12 TESTS='tests/system/test_peers.py -k nginx'
TESTS := tests/system
# make shell KERNEL=6.1
KERNEL := 6.12

help: ## say what there is (this)
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## install packages and make .venv, whatever of it is missing
	@tools/setup.sh

demo: setup ## show the whole thing at work, in a virtual machine
	@$(VM) run --kernel 6.12 --results $(RESULTS)/demo --deadline 900 -- python -m vm.demo

test: setup ## run every check and every test, on both kernels
	@rm -rf $(RESULTS)/steps $(RESULTS)/*.xml $(RESULTS)/test-*
	@status=0; \
	$(MAKE) -k -j$(JOBS) --no-print-directory lint unit build || status=1; \
	$(MAKE) -k -j$(JOBS) --no-print-directory test-vm test-runner || status=1; \
	$(STEP) --total && exit $$status

lint: lint-python lint-shell lint-kmod lint-generated ## check style, types and the module's sources

lint-python: setup
	@$(STEP) ruff .venv/bin/ruff check .
	@$(STEP) "ruff format" .venv/bin/ruff format --check .
	@$(STEP) "mypy --strict" .venv/bin/mypy ssad vm tools tests netlink_proto examples

lint-shell: setup
	@$(STEP) shellcheck shellcheck $(SHELL_SCRIPTS)

lint-kmod: setup $(KERNELS:%=lint-sparse-%)
	@$(STEP) "checkpatch --strict" tools/checkpatch.sh kmod/*.[ch] examples/*.c

# A build of its own, for every file is compiled again.
lint-sparse-%: setup
	@$(STEP) "sparse and W=1, kernel $*" $(VM) build --kernel $* --into build/sparse-$* -- \
		C=2 CF='-D__CHECK_ENDIAN__ -Wsparse-error'

lint-generated: setup
	@$(STEP) "generated files" $(PYTHON) netlink_proto/generate.py --check

unit: setup ## run the tests that need no virtual machine
	@$(STEP) --junit $(RESULTS)/unit.xml "unit tests" \
		$(PYTHON) -m pytest --quiet --junitxml=$(RESULTS)/unit.xml $(MARKED)

build: $(KERNELS:%=build-%) ## build the module for both kernels

build-%: setup
	@$(STEP) "module for kernel $*" $(VM) build --kernel $*

test-vm: $(KERNELS:%=test-vm-%) ## run the system tests in virtual machines

test-vm-%: setup clients
	@$(STEP) --live --junit $(RESULTS)/test-$*/junit.xml "vm $*" \
		$(VM) run --kernel $* --results $(RESULTS)/test-$* --deadline 3600 -- \
		python -m pytest --junitxml=$(RESULTS)/test-$*/junit.xml \
			-p no:cacheprovider --color=no $(TESTS)

test-runner: setup ## have the runner's guests fail in every way
	@$(STEP) --junit $(RESULTS)/runner.xml "tests of the runner" \
		$(PYTHON) -m pytest --quiet --junitxml=$(RESULTS)/runner.xml tests/vm

clients: setup
	@$(MAKE) --silent -C tests/peers

shell: setup ## open a shell in a virtual machine, module and daemon up
	@$(VM) shell --kernel $(KERNEL)

bench: setup ## measure, and print and store one table
	@$(PYTHON) -m tests.bench

style: setup ## format what can be formatted
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean: ## remove what was built
	rm -rf build

.PHONY: help setup demo test lint lint-python lint-shell lint-kmod lint-generated unit build \
	test-vm test-runner clients shell bench style clean
