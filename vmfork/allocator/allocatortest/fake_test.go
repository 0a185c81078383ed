package allocatortest

import (
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func TestFakeConforms(t *testing.T) {
	Conform(t, New(allocator.Host{Name: "h1", Slots: 2}, allocator.Host{Name: "h2"}))
}
