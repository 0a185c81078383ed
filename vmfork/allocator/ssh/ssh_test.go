package ssh

import (
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

func TestSSHConforms(t *testing.T) {
	w := newWorld(t)
	w.simple("h1")
	w.simple("h2")
	allocatortest.Conform(t, w.open(Config{}, "h1", "h2"))
}

func TestAddress(t *testing.T) {
	w := newWorld(t)
	w.write("config", "Host h1\nHostName Node1.example.org\nHost bad\nPort 0\n")
	a := w.open(Config{}, "h1", "h2", "bad")
	for name, want := range map[string]string{"h1": "node1.example.org", "h2": "h2"} {
		if got, err := a.Address(allocator.Host{Name: name}); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	_, err := a.Address(allocator.Host{Name: "bad"})
	fails(t, err, "bad", "is not a port")
}
