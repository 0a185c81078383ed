package ssh

import (
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

func TestSSHConforms(t *testing.T) {
	w := newWorld(t)
	w.simple("h1")
	w.simple("h2")
	allocatortest.Conform(t, w.open(Config{}, "h1", "h2"))
}
