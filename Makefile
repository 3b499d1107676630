# SPDX-License-Identifier: BSD-3-Clause
#
# The project's verbs. Each sets up what it needs.

KERNELS := 6.1 6.12
PYTHON := .venv/bin/python
STEP := $(PYTHON) tools/step.py
VM := $(PYTHON) -m vm
RESULTS := build/results
JOBS := $(shell nproc)
SHELL_SCRIPTS := .ci/run $(wildcard tools/*.sh vm/*.sh examples/*.sh) vm/boot/udevadm

# Ordinary users leave out the few unit tests that only root can run.
MARKED := $(if $(filter 0,$(shell id -u)),,-m 'not root')

# make test-vm-6.12 TESTS='tests/system/test_peers.py -k nginx'; TESTS=tests/system has the long ones too
TESTS := tests/system -m 'not long'
DEADLINE := 4800
# make test-vm-6.12 TESTS='tests/system/test_limits.py -k many' SOCKETS=100000 MEMORY=6G
MEMORY :=
# make shell KERNEL=6.1
KERNEL := 6.12

help: ## say what there is (this)
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## install packages and make .venv, whatever of it is missing
	@tools/setup.sh

demo: setup ## show the whole thing at work, in a virtual machine
	@$(VM) run --kernel 6.12 --results $(RESULTS)/demo --deadline 900 -- python -m vm.demo

test: setup ## run every check and every test, on two kernels and in part on a debug kernel
	@rm -rf $(RESULTS)/steps $(RESULTS)/*.xml $(RESULTS)/test-* $(RESULTS)/fuzz-*
	@status=0; \
	$(MAKE) -k -j$(JOBS) --no-print-directory lint unit build build-debug || status=1; \
	$(MAKE) -k -j$(JOBS) --no-print-directory test-vm test-long test-core fuzz-6.12 test-runner \
		|| status=1; \
	$(STEP) --total && exit $$status

lint: lint-python lint-shell lint-kmod lint-generated ## check style, types and the module's sources

lint-python: setup
	@$(STEP) ruff .venv/bin/ruff check .
	@$(STEP) "ruff format" .venv/bin/ruff format --check .
	@$(STEP) "mypy --strict" .venv/bin/mypy ssad vm tools tests netlink_proto examples

lint-shell: setup
	@$(STEP) shellcheck shellcheck $(SHELL_SCRIPTS)

lint-kmod: setup $(KERNELS:%=lint-sparse-%)
	@$(STEP) "checkpatch --strict" tools/checkpatch.sh kmod/*.[ch] examples/*.c examples/*/*.c \
		tests/vm/faulty/*.c

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

# in-guest KERNEL,RESULTS,TESTS: pytest in a guest, which leaves what it counts for the total
in-guest = $(STEP) --live --junit $(RESULTS)/$2/junit.xml "$2" \
	$(VM) run --kernel $1 --results $(RESULTS)/$2 --deadline $(DEADLINE) \
	$(if $(MEMORY),--memory $(MEMORY)) \
	--env FUZZ_SEED --env FUZZ_MESSAGES --env FUZZ_SECONDS --env SOCKETS -- \
	python -m pytest --junitxml=$(RESULTS)/$2/junit.xml -p no:cacheprovider --color=no $3

test-vm-%: setup clients
	@$(call in-guest,$*,test-$*$(SUFFIX),$(TESTS))

test-long: setup clients ## run those system tests that take minutes, on one kernel
	@$(call in-guest,6.12,$@,tests/system -m long)

test-core: setup clients ## run on the debug kernel what it is for: faults and races
	@$(call in-guest,debug,$@,tests/debug -m 'not long')

# make fuzz-debug FUZZ_SEED=7 FUZZ_SECONDS=3600 DEADLINE=0
fuzz-%: setup clients ## send and call at random: FUZZ_SEED, FUZZ_MESSAGES, FUZZ_SECONDS
	@$(call in-guest,$*,fuzz-$*,--verbose tests/fuzz)

test-debug: setup ## build the debug kernel, and run everything on it, which takes hours
	@status=0; \
	$(MAKE) --no-print-directory test-runner || status=1; \
	for tests in debug system; do \
		$(MAKE) --no-print-directory test-vm-debug TESTS=tests/$$tests SUFFIX=-$$tests \
			DEADLINE=0 || status=1; \
	done; \
	$(MAKE) --no-print-directory fuzz-debug DEADLINE=0 || status=1; \
	$(VM) coverage $(RESULTS)/test-debug-debug $(RESULTS)/test-debug-system \
		$(RESULTS)/fuzz-debug || status=1; \
	exit $$status

test-runner: setup ## have guests fail in every way, and the debug kernel report all it should
	@$(STEP) --junit $(RESULTS)/runner.xml "tests of the runner" \
		$(PYTHON) -m pytest --quiet --junitxml=$(RESULTS)/runner.xml tests/vm

clients: setup
	@$(MAKE) --silent -C tests/peers

shell: setup ## open a shell in a virtual machine, module and daemon up
	@$(VM) shell --kernel $(KERNEL)

bench: setup ## measure, and print and store one table
	@$(PYTHON) -m tests.bench

install uninstall: ## put the module, its headers and the man pages into the system (DESTDIR); take them away
	@$(MAKE) -C kmod $@
	@$(MAKE) -C man $@

style: setup ## format what can be formatted
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean: ## remove what was built
	rm -rf build

.PHONY: help setup demo test lint lint-python lint-shell lint-kmod lint-generated unit build \
	test-vm test-long test-core test-debug test-runner clients shell bench install uninstall style clean
