package rig

import (
	"os"
	"testing"
)

// Names of variables that tests find in the rig.
const (
	envFlavour = "MPIRUN_SF_XEN_RIG"    // "stock" or "paging"
	envKernel  = "MPIRUN_SF_XEN_KERNEL" // path of a guest's kernel
	envInitrd  = "MPIRUN_SF_XEN_INITRD" // path of the initramfs with the rig's guest
)

// A Guest is what tests can start: Linux, and an initramfs in which the rig's own guest runs (command domu).
type Guest struct {
	Flavour Flavour
	Kernel  string // path of an ELF file that starts as PVH
	Initrd  string // path
}

// Probe is called by tests that need the rig. Elsewhere they are skipped.
func Probe(t testing.TB) Guest {
	t.Helper()
	g := Guest{Flavour(os.Getenv(envFlavour)), os.Getenv(envKernel), os.Getenv(envInitrd)}
	if g.Flavour == "" {
		t.Skipf("not in the rig, which sets %s: make test-xen", envFlavour)
	}
	return g
}
