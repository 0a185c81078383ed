package xen

import (
	"os"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
)

// TestProcessors: clones of a guest with two processors go on, and count on both.
func TestProcessors(t *testing.T) {
	if os.Getenv("MPIRUN_SF_TEST_ALL") == "" {
		t.Skip("where two processors share one they wait for each other by spinning, for minutes: MPIRUN_SF_TEST_ALL=1 takes the time")
	}
	for _, kind := range []Guests{PVH, PV} {
		t.Run(kind.String(), func(t *testing.T) {
			d, g := find(t, kind), makeGuest(t)
			g.Shape.VCPUs = 2
			p := conformance.Freeze(t, d, g, conformance.Traits{OnDemand: hypervisor.Lacks("memory comes on demand to guests of one processor")})
			t.Run("faults", p.Faults)
		})
	}
}
