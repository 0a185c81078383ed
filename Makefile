# make demo and make test do all of their own set-up on a Debian machine that has Go: packages,
# build, examples. The other targets do one thing each.

PREFIX  ?= /usr/local
DESTDIR ?=

# Go's own answer or its one-line complaint; see the target check-go.
GO      := $(shell .ci/go 2>/dev/null)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
MPICC   ?= mpicc.mpich
CFLAGS  ?= -O2 -Wall -Wextra

# The product is static; only the race detector needs C.
export CGO_ENABLED = 0

# The program and its tests make namespaces, taps and mounts. Where the user is not
# root, only what has to be is run by root: the build cache stays the user's own.
SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
AS_ROOT  := $(if $(SUDO),-exec '$(SUDO)')

PRELOADS := $(patsubst %.c,%.so,$(wildcard vmfork/guest/preload/*.c))
# The PMIx helper for Open MPI, where libpmix's headers are.
PMIX     := $(firstword $(wildcard /usr/include/pmix_server.h /usr/local/include/pmix_server.h /usr/lib/*/pmix2/include/pmix_server.h))
PRELOADS += $(if $(PMIX),pmi/pmix/helper/sfpmix)
# The small agent of ranks without clones, which has the others in it.
RANKS    := mpirun-sf/ranks/sf-ranks
PRELOADS += $(RANKS)
EXAMPLES := $(patsubst examples/%.c,bin/examples/%,$(wildcard examples/*.c examples/fork/*.c))

# Tests of the whole product run the program as a user does, so the detector would see
# nothing of it.
WHOLE     = ./mpirun-sf/e2e
# These bring a hypervisor of their own.
RIGS      = ./mpirun-sf/e2e/kvm

.PHONY: build openmpi-plugin examples demo test test-all check test-whole test-parts test-kvm test-xen test-xen-paging test-mpich lint bench-launch bench-fork bench-distribution bench-mpi install bindings install-bindings clean deps check-go
.NOTPARALLEL:

build: check-go $(PRELOADS)
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/mpirun-sf ./mpirun-sf

check-go:
	@.ci/go >/dev/null

# Goes into the guest with the binary, which embeds it. Without a C library of its own it
# loads beside whichever the guest has.
vmfork/guest/preload/%.so: vmfork/guest/preload/%.c
	$(CC) -shared -fPIC $(CFLAGS) -nostdlib -o $@ $<

pmi/pmix/helper/sfpmix: $(wildcard pmi/pmix/helper/*.[ch])
	$(CC) $(CFLAGS) -fvisibility=hidden -D_GNU_SOURCE -I$(dir $(PMIX)) -o $@ $(filter %.c,$^) -lpmix -lpthread

# What it is made of is go's to know. Without a version in it, hosts that have it
# need no other one when something else has changed.
.PHONY: $(RANKS)
$(RANKS): check-go $(filter-out $(RANKS),$(PRELOADS))
	@$(GO) build -trimpath -buildvcs=false -ldflags "-s -w" -o $@ ./mpirun-sf/ranks

examples: $(EXAMPLES)

bin/examples/%: examples/%.c
	@mkdir -p $(@D)
	$(MPICC) $(CFLAGS) -o $@ $<

# The one example that must not be linked with MPI.
bin/examples/nompi: examples/nompi.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $<

# Those that fork the machine that they run in.
bin/examples/fork/%: examples/fork/%.c vmfork/bindings/c/sf.c vmfork/bindings/c/sf.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Ivmfork/bindings/c -o $@ $< vmfork/bindings/c/sf.c

# The VM fork API for C, C++, Fortran, Python and Java.
bindings install-bindings:
	$(MAKE) -C vmfork/bindings $(if $(filter install%,$@),install PREFIX=$(PREFIX) DESTDIR=$(DESTDIR))

# Components of Open MPI, so that its own mpirun makes clones.
openmpi-plugin:
	$(MAKE) -C openmpi-plugin

demo: deps
	@$(MAKE) --no-print-directory build examples
	$(SUDO) bin/mpirun-sf -np 4 bin/examples/pi 1000000

# Everything, also what needs QEMU and root; and nothing may be left on the machine afterwards.
test: deps
	@$(MAKE) --no-print-directory build examples
	.ci/leftovers $(MAKE) --no-print-directory check

# The same with the slow matrix: hundreds of runs where make test does a dozen.
test-all:
	MPIRUN_SF_TEST_ALL=1 $(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory test-kvm

# Without the set-up before it and the look around after it.
check: lint test-parts test-whole

# One package at a time: the clones of a test want the cores for themselves. What runs in virtual time
# does so without the race detector.
test-parts: check-go $(PRELOADS)
	$(GO) test $(AS_ROOT) -count=1 -timeout 15m ./vmfork/mcdist/multicast
	CGO_ENABLED=1 $(GO) test $(AS_ROOT) -race -count=1 -p 1 -timeout 15m $(if $(MPIRUN_SF_TEST_ALL),,-short) $$($(GO) list ./... | grep -v /e2e)

test-whole: check-go $(PRELOADS)
	$(GO) test $(AS_ROOT) -count=1 -p 1 -timeout 90m $(WHOLE)

# What the product does on KVM, in a machine that has it: QEMU's translator emulates one. Needs
# neither root nor /dev/kvm. Its coverage goes to bin/kvm.
test-kvm: deps
	@mkdir -p bin/kvm
	MPIRUN_SF_TEST_RESULTS=$(CURDIR)/bin/kvm $(GO) test -count=1 -v -timeout 150m $(RIGS)

# The Xen driver's tests, and the launcher's on Xen, in dom0 of Debian's Xen under QEMU's translator; neither root nor Xen is
# needed. test-xen-paging has the same Xen with memory paging, which it compiles the first time. ARGS go
# to the command, -run REGEXP and packages among them. Logs and coverage go to bin/xen-stock and bin/xen-paging.
test-xen: deps
	$(GO) run ./xen/rig/testxen $(ARGS)

test-xen-paging: deps
	$(GO) run ./xen/rig/testxen -xen paging $(ARGS)

# MPICH's own tests of launchers, on clones and under hydra. The first time it builds MPICH, as
# the user, which takes some minutes.
test-mpich: deps
	@$(MAKE) --no-print-directory build
	$(GO) run ./benchmarks/mpichsuite -build
	$(GO) run $(AS_ROOT) ./benchmarks/mpichsuite $(ARGS)

lint: check-go $(PRELOADS)
	@for script in .ci/* examples/fork/*.sh; do bash -n $$script || exit; done
	@out=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .) && [ -z "$$out" ] || \
		{ echo "mpirun-sf: not formatted (gofmt -w):" $$out >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# ARGS go to the benchmark.
bench-launch: deps
	@$(MAKE) --no-print-directory build examples
	$(GO) run $(AS_ROOT) ./benchmarks/launch $(ARGS)

bench-fork: deps
	@$(MAKE) --no-print-directory build
	$(GO) run $(AS_ROOT) ./benchmarks/fork $(ARGS)

bench-distribution: deps
	@$(MAKE) --no-print-directory build examples
	$(GO) run $(AS_ROOT) ./benchmarks/distribution $(ARGS)

bench-mpi: deps
	@$(MAKE) --no-print-directory build examples
	$(GO) run $(AS_ROOT) ./benchmarks/mpi $(ARGS)

install:
	install -D -m 755 bin/mpirun-sf $(DESTDIR)$(PREFIX)/bin/mpirun-sf
	ln -sf mpirun-sf $(DESTDIR)$(PREFIX)/bin/sf
	install -d $(DESTDIR)$(PREFIX)/lib/mpirun-sf/mpich
	for name in mpirun mpiexec mpiexec.hydra; do ln -sf ../../../bin/mpirun-sf $(DESTDIR)$(PREFIX)/lib/mpirun-sf/mpich/$$name; done
	install -D -m 644 docs/mpirun-sf.1 $(DESTDIR)$(PREFIX)/share/man/man1/mpirun-sf.1
	sed 's|/usr/local|$(PREFIX)|g' docs/mpirun-sf.service | \
		install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/mpirun-sf.service
	$(if $(wildcard openmpi-plugin/*.so),$(MAKE) -C openmpi-plugin install)

clean:
	rm -rf bin $(PRELOADS)
	$(MAKE) -C vmfork/bindings clean
	$(MAKE) -C openmpi-plugin clean

deps:
	@.ci/deps
