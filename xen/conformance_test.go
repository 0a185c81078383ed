package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
)

// sleeper as its only argument makes this program wait, as a command may.
const sleeper = "sleep"

// As the first process of a guest, this program is what the guest runs.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		counter.Main()
	}
	if len(os.Args) == 2 && os.Args[1] == sleeper {
		time.Sleep(time.Minute)
		os.Exit(0)
	}
	if dir := os.Getenv(envVictim); dir != "" {
		fmt.Println(beVictim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// envKernel names the variable with the path of a guest's kernel that starts as PVH and
// has the consoles' driver built in.
const envKernel = "MPIRUN_SF_XEN_KERNEL"

// bootLimit is how long a guest of an emulated machine may take on a busy one.
const bootLimit = 5 * time.Minute

// find is the driver of this machine. Without Xen, the test is skipped.
func find(t *testing.T, g Guests) *Driver {
	t.Helper()
	d, err := Find(t.Context(), g)
	if errors.Is(err, hypervisor.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	before := domains(t, d)
	t.Cleanup(func() {
		if after := domains(t, d); !slices.Equal(after, before) {
			t.Errorf("there are the domains %s, and were %s before", after, before)
		}
	})
	return d
}

// domains are the numbers of those that XenStore has anything of.
func domains(t *testing.T, d *Driver) []string {
	t.Helper()
	numbers, err := d.store.List(context.Background(), "/local/domain")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(numbers)
	return numbers
}

// makeGuest makes the guest of the tests. Where the conformance tests' is not compiled, this program is its init.
func makeGuest(t *testing.T) conformance.Guest {
	t.Helper()
	kernel := os.Getenv(envKernel)
	if kernel == "" {
		t.Skipf("%s names no kernel of a guest", envKernel)
	}
	program := os.Getenv(conformance.ProgramVariable)
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	initrd := filepath.Join(t.TempDir(), "initramfs")
	f, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.WriteInitramfs(f, program, &guest.Kernel{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return conformance.Guest{
		Kernel:    hypervisor.Kernel{Image: kernel, Initrd: initrd, Cmdline: "mitigations=off cryptomgr.notests"}, // exits to Xen, and nearly half of its boot
		Shape:     hypervisor.Shape{VCPUs: 1, Memory: 128 << 20},
		BootLimit: bootLimit, Shared: true,
	}
}

// TestConformance has one guest for all, since it is its boot that takes long. To run a part of it wants "boot and suspend" as well.
func TestConformance(t *testing.T) {
	d := find(t, PVH)
	f := &frozen{conformance.Run(t, d, makeGuest(t)), d}
	f.Seal(t, conformance.Traits{OnDemand: d.OnDemand()})
	t.Run("descriptor", f.describe)
	t.Run("memory", f.RunMemory)
	t.Run("on demand", f.onDemand)
}

// TestConformancePV is the same for PV guests, whose memory is there at once.
func TestConformancePV(t *testing.T) {
	d := find(t, PV)
	f := &frozen{conformance.Run(t, d, makeGuest(t)), d}
	f.Seal(t, conformance.Traits{OnDemand: d.OnDemand()})
	t.Run("descriptor", f.describe)
	t.Run("memory", f.RunMemory)
}
