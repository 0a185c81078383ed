package allocator_test

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func TestHere(t *testing.T) {
	self, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	here := []string{self, strings.ToUpper(self), self + ".", "localhost", "127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		here = append(here, strings.Split(a.String(), "/")[0])
	}
	for _, name := range here {
		if !allocator.Here(t.Context(), name) {
			t.Errorf("%s is not here", name)
		}
	}
	for _, name := range []string{"192.0.2.1", "2001:db8::1", "no-such-host.invalid", ""} {
		if allocator.Here(t.Context(), name) {
			t.Errorf("%q is here", name)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if allocator.Here(ended, "another-host.invalid") {
		t.Error("a host that nobody was asked for is here")
	}
}
