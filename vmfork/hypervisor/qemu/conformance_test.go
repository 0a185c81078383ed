package qemu

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
)

// On what this machine has: where KVM is usable it is what jobs run on.
func TestConformance(t *testing.T) {
	accel, _ := Probe(t.Context())
	d, err := Find(t.Context(), accel)
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, d, conformance.MakeGuest(t))
}

func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: make test-all runs it")
	}
	accel, _ := Probe(t.Context())
	d, err := Find(t.Context(), accel)
	if err != nil {
		t.Fatal(err)
	}
	conformance.Freeze(t, d, conformance.MakeGuest(t), conformance.Traits{Own: privateMemory}).RunMemory(t)
}

// privateMemory is a machine's memory that is no file's, in bytes (proc(5)).
func privateMemory(t *testing.T, vm hypervisor.VM) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var kb int64
	_, after, _ := bytes.Cut(status, []byte("RssAnon:"))
	if _, err := fmt.Sscan(string(after), &kb); err != nil {
		t.Fatalf("process %d does not say what memory it has: %v", vm.PID(), err)
	}
	return kb << 10
}

// A machine that cannot start is an error with QEMU's reason, and no process.
func TestMachineThatCannotStart(t *testing.T) {
	d, err := Find(t.Context(), TCG)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = d.Prepare(t.Context(), hypervisor.Config{
		Name: "clone-1", Dir: t.TempDir(), Shape: hypervisor.Shape{VCPUs: 1, Memory: 128 << 20}, MemoryPath: "/no/such/memory",
	})
	if err == nil {
		t.Fatal("a machine without memory started")
	}
	conformance.Says(t, err, "start QEMU for clone-1", "QEMU says", "/no/such/memory")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the error took %v", took)
	}
}
