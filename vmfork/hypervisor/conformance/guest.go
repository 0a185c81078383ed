package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Guest is what the tests boot: a kernel, and an initramfs whose init is package
// counter.
type Guest struct {
	hypervisor.Kernel
	Shape     hypervisor.Shape
	BootLimit time.Duration // until it is heard
	// Shared has clones have one RAM file in common, which the driver's machines leave as it is. Else each has a copy: what a
	// guest of some frees they punch out of the file.
	Shared bool
}

// ProgramVariable names the guest's program, compiled, in the environment of
// tests that run where there is no Go.
const ProgramVariable = "MPIRUN_SF_TEST_GUEST"

// Program is its package.
const Program = "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/testdata/guest"

// MakeGuest makes one from a kernel of this machine's, or of the user's cache.
func MakeGuest(t *testing.T) Guest {
	t.Helper()
	cache, err := guest.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guest.FindKernel(t.Context(), cache.Dir, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := os.Getenv(ProgramVariable)
	if program == "" {
		program = filepath.Join(dir, "init")
		build := exec.Command("go", "build", "-o", program, Program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the guest's init: %v\n%s", err, out)
		}
	}
	initrd := filepath.Join(dir, "initramfs")
	f, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.WriteInitramfs(f, program, kernel); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return Guest{
		Kernel:    hypervisor.Kernel{Image: kernel.Path, Initrd: initrd},
		Shape:     hypervisor.Shape{VCPUs: 1, Memory: 192 << 20},
		BootLimit: 5 * time.Minute,
	}
}
