# Every target sets up all it needs (Debian packages, .venv, the build) and is safe to repeat.
#
#   make demo          the main job on real traffic, in network namespaces; MODE=nat, dr or tun; HA=1: failures
#   make test          everything that CI runs, at small sizes; test-full: at the sizes that the issues name
#   make quick         lint, types, unit tests: no root, under a minute
#   make sanitize      the tests without a network, with AddressSanitizer and UndefinedBehaviorSanitizer in the core
#   make fuzz          libFuzzer sends PACKETS (2000000) through such a core; ends with 1 at a finding
#   make netns-test    the end-to-end tests, each named as it runs
#   make offload-test  the matrix of these tests once more, the kernel forwarding what is established
#   make oracle-vm     tests under a kernel with ip_vs and tunnel devices, booted for them: a download of 42 MB, 120 MB kept
#   make bench         figures with their bars: start of commands, the core alone, changes, very many services, peers
#   make bench-compare no step of the core costs much more than it did
#   make setup clean
#
# PYTHON chooses the interpreter (3.11 or later, with headers), NFQLB_BUILD how the core is compiled (see setup.py),
# ARGS is handed to pytest or to the demo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
export NFQLB_BUILD ?= release
# Tests start nfqlb a thousand times: its Python is compiled once.
export PYTHONDONTWRITEBYTECODE :=
ARGS ?=

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
CORE := $(shell find ext bench -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.bpf.c')
PACKAGES := build-essential python3-dev python3-venv libnetfilter-queue-dev iptables nftables ipset iproute2 ethtool \
	nginx-light wrk curl tcpdump conntrack procps systemd
# The real servers' mail, files and names, and the storage that they mount.
PACKAGES += openssl openssh-server sshfs postfix dovecot-imapd vsftpd bind9 bind9-dnsutils
# Two directors, and directors that announce their VIPs by BGP.
PACKAGES += keepalived bird2
BENCH_PACKAGES := haproxy libnginx-mod-stream ipvsadm kmod
VM_PACKAGES := ipvsadm kmod
export CLANG := clang-16
PACKAGES += $(CLANG)
ifeq ($(NFQLB_BUILD),fuzz)
export CC := $(CLANG)
PACKAGES += libclang-rt-16-dev llvm-16
endif
PYTEST := $(BIN)/pytest
# Two at a time, each a network of processes. A file of tests stays in one, so that they share what they make for it.
PARALLEL := -n 2 --dist loadfile -p no:benchmark

.PHONY: setup packages lint types unit tests quick test test-full sanitize fuzz netns-test offload-test oracle-vm demo bench bench-compare clean

# -- set-up -----------------------------------------------------------------------------------------------------------

setup: build/$(NFQLB_BUILD)/compiled

# What Debian lacks is installed; a daemon that comes with it is neither started (policy-rc.d) nor enabled (preset).
POLICY := /usr/sbin/policy-rc.d
PRESET := /run/systemd/system-preset/00-nfqlb-packages.preset
packages:
	@missing=$$(comm -23 <(printf '%s\n' $(PACKAGES) | sort) \
	    <(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | sed -n 's/^installed //p' | sort) \
	    | tr '\n' ' '); \
	[ -z "$$missing" ] || { \
	    [ $$(id -u) = 0 ] || { echo "missing Debian packages; as root: apt-get install $$missing" >&2; exit 1; }; \
	    echo "apt-get install $$missing"; \
	    made=; trap 'rm -f $(PRESET) $$made' EXIT; \
	    [ -e $(POLICY) ] || { made=$(POLICY); printf '#!/bin/sh\nexit 101\n' > $(POLICY); chmod +x $(POLICY); }; \
	    install -D -m 644 <(echo 'disable *') $(PRESET); \
	    apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing > /dev/null; \
	}

.venv/installed: pyproject.toml | packages
	@$(PYTHON) -c 'import ensurepip, os, sys, sysconfig; \
	header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	sys.exit(None if sys.version_info >= (3, 11) and os.path.exists(header) else \
	    f"{sys.executable} is Python {sys.version.split()[0]}: 3.11 or later with {header} is needed; name one: make PYTHON=...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq pip==26.3
	$(BIN)/python -m pip install -qq --group dev
	NFQLB_BUILD=none $(BIN)/python -m pip install -qq --no-build-isolation --no-deps -e .
	@touch $@

build/$(NFQLB_BUILD)/compiled: .venv/installed setup.py tests/fuzz/covered.txt $(CORE)
	@rm -f build/*/compiled $(if $(filter-out $@,$(wildcard build/*/compiled)),src/nfqlb/_core/*.so bench/*.so)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

clean:
	rm -rf .venv build src/*.egg-info src/nfqlb/_core/*.so src/nfqlb/_core/*.bpf.o bench/*.so .benchmarks .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# -- checks -----------------------------------------------------------------------------------------------------------

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint ext bench
	$(BIN)/lint-imports --no-logo

types: setup
	$(BIN)/mypy

unit: setup
	$(PYTEST) tests/unit $(ARGS)

quick: lint types unit

# All that needs no namespaces; netns-test is the rest.
tests: setup
	$(PYTEST) $(PARALLEL) --junitxml=build/reports/tests.xml --ignore=tests/netns tests $(ARGS)

netns-test: setup
	$(PYTEST) $(PARALLEL) -v --junitxml=build/reports/netns.xml tests/netns $(ARGS)

offload-test: setup
	NFQLB_OFFLOAD=auto $(PYTEST) $(PARALLEL) -v --junitxml=build/reports/offload.xml tests/netns/test_matrix.py $(ARGS)

# Not part of `make test`. ARGS is one word for pytest here, as it goes through a shell: ARGS=-x.
oracle-vm: PACKAGES += $(VM_PACKAGES)
oracle-vm: setup
	tests/vm/ipvs-vm run '$(BIN)/pytest -v -p no:cacheprovider tests/vm $(ARGS)'

test: lint types tests netns-test bench-compare

test-full: export NFQLB_FULL = 1
test-full: export PYTEST_TIMEOUT = 1800
# Before that nobody asks where a test is: telling it ends a process now and then (SIGSEGV).
test-full: export PYTEST_ADDOPTS = -o faulthandler_timeout=0
test-full: test offload-test

# Python is not compiled with the sanitizers, so their libraries go first, and what it leaks at its end is not counted.
# What they find ends the process that did it; a report of a child that nobody looked at counts as well.
REPORT := build/sanitize/report
SANITIZER := abort_on_error=1:halt_on_error=1:print_stacktrace=1:log_path=$(CURDIR)/$(REPORT)
SANITIZED := tests/core tests/unit tests/property tests/oracle tests/fuzz

sanitize: export NFQLB_BUILD := sanitize
sanitize:
	@$(MAKE) setup
	@rm -f $(REPORT).*
	@code=0; \
	export ASAN_OPTIONS=$(SANITIZER):detect_leaks=0:detect_stack_use_after_return=1 UBSAN_OPTIONS=$(SANITIZER); \
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so) \
	    $(PYTEST) --junitxml=build/reports/sanitize.xml $(SANITIZED) $(ARGS) || code=$$?; \
	for report in $(REPORT).*; do [ ! -e $$report ] || { cat $$report; code=1; }; done; \
	exit $$code

# Clang compiles the core and an interpreter with libFuzzer in it. The core then loads in that interpreter only; the next
# target that wants another build makes it.
PACKETS ?= 2000000
EMBED := from sysconfig import get_config_var as var, get_path; \
	print("-I" + get_path("include"), "-L" + var("LIBDIR"), "-Wl,-rpath," + var("LIBDIR"), "-lpython" + var("LDVERSION"))

fuzz: export NFQLB_BUILD := fuzz
fuzz:
	@$(MAKE) setup build/fuzz/python
	@ASAN_SYMBOLIZER_PATH=$$($(CLANG) --print-prog-name=llvm-symbolizer) PYTHONPATH=src:. \
	    $(BIN)/python -m tests.fuzz.run $(PACKETS)

build/fuzz/python: tests/fuzz/python.c .venv/installed | build/fuzz/compiled
	$(CLANG) -g -fsanitize=address,undefined -rdynamic $< -o $@ -lstdc++ -lm \
	    -Wl,--whole-archive $$($(CLANG) --print-runtime-dir)/libclang_rt.fuzzer_no_main-$$(uname -m).a \
	    -Wl,--no-whole-archive $$($(BIN)/python -c '$(EMBED)')

demo: setup
	@$(BIN)/python -m netns.demo $(ARGS)

# Each step of the core as a ratio to a read from memory, against the kept ratios of bench/baseline.json.
bench-compare: setup
	$(PYTEST) --benchmark-columns=median,iqr --junitxml=build/reports/bench.xml bench/test_core_bench.py $(ARGS)

# An hour. It writes docs/bench, docs/scheduling.md and their pictures.
bench: PACKAGES += $(BENCH_PACKAGES)
bench: setup
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.core
	$(BIN)/python -m bench.schedulers
	$(BIN)/python -m bench.pyscheduler
	$(BIN)/python -m bench.latency
	$(BIN)/python -m bench.changes
	$(BIN)/python -m bench.overload
	$(BIN)/python -m bench.health
	$(BIN)/python -m bench.failure
	$(BIN)/python -m bench.failover
	$(BIN)/python -m bench.takeover
	$(BIN)/python -m bench.active
	$(BIN)/python -m bench.sync
	$(BIN)/python -m bench.flood
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.workers
	$(BIN)/python -m bench.peers
	$(BIN)/python -m bench.ipvs
